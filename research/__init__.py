"""Headway: how sequence models attend, and what each way costs."""

__version__ = "0.1.0"
