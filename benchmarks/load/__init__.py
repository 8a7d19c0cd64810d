"""Load on a server: when requests are sent, what sends them, and how each one ends. No torch, no web framework.

It is the client's side alone: the server under test is a process of its own, so that neither slows the other down
unnoticed.
"""
