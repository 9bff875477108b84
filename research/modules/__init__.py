"""Flax shells: they name and initialise parameters and call the pure functions."""
