"""Every setting of a run, explained and checked where it is defined; `compress.recipe` builds one tree of them."""
