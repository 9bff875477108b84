"""Grids of experiments that differ in declared factors: planning, running, resuming."""
