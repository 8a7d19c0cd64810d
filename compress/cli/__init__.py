"""The command line: it parses, calls, and prints. Everything it does is callable from Python.

Each command imports what it needs when it is called, so that `compress serve` starts without torch.
"""
