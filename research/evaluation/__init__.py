"""Evaluation: bits per byte and the baselines it stands beside."""
