"""Load on a serving process: when requests are sent, who sends them, and what came of each. No torch, no web framework.

It is the client's side alone: the server under test is a process of its own, so that neither slows the other down
unseen.
"""
