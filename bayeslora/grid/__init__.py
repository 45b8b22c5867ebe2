"""Grids of runs: methods x datasets x seeds, a run folder and a process a cell; no Lightning in it."""
