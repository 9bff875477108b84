"""Inference: sampling with caches."""
