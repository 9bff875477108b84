"""Inference: sampling with caches, beam search, translating lines."""
