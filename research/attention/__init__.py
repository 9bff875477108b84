"""Attention as pure functions: arrays in, arrays out."""
