"""Every setting of a run, explained and checked where it stands; `compress.recipe` puts them into one tree."""
