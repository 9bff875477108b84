"""Data: TFDS builders, tokenizers, packing, and the Grain pipeline."""
