"""Models: a frozen dataclass describes one and builds it."""
