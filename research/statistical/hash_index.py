"""A vectorised hash table: where each of many integers is in an array."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32, Int64


@dataclasses.dataclass(frozen=True, eq=False)
class HashIndex:
    """Where each of many keys is, by a hash table with linear probing.

    Attributes:
      slots: keys; -1 where there is none.
      places: place of each slot's key; -1 where there is none.
      shift: bits of the hash that are not used.
    """

    slots: Int64[np.ndarray, " slots"]
    places: Int32[np.ndarray, " slots"]
    shift: int

    @classmethod
    def of(cls, keys: Int64[np.ndarray, " keys"]) -> HashIndex:
        """Returns the index of different keys, none of them negative."""
        bits = max(int(2 * len(keys)).bit_length(), 4)
        index = cls(np.full(1 << bits, -1), np.full(1 << bits, -1, np.int32), 64 - bits)
        waiting = np.arange(len(keys))
        slots = index._first(keys)
        while len(waiting):
            free = index.slots[slots] < 0
            index.slots[slots[free]] = keys[waiting[free]]  # of several that want one slot, the last gets it
            placed = index.slots[slots] == keys[waiting]
            index.places[slots[placed]] = waiting[placed]
            waiting, slots = waiting[~placed], (slots[~placed] + 1) & (len(index.slots) - 1)
        return index

    def find(self, keys: Int64[np.ndarray, " queries"]) -> Int32[np.ndarray, " queries"]:
        """Returns the place of each key, -1 if it is not there."""
        slots = self._first(keys)
        found = self.slots[slots]
        waiting = np.flatnonzero((found != keys) & (found >= 0))
        while len(waiting):
            slots[waiting] = (slots[waiting] + 1) & (len(self.slots) - 1)
            found = self.slots[slots[waiting]]
            waiting = waiting[(found != keys[waiting]) & (found >= 0)]
        return self.places[slots]

    def _first(self, keys: np.ndarray) -> np.ndarray:
        # Fibonacci hashing: the golden ratio spreads consecutive keys; wrapping around is meant.
        spread = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (spread >> np.uint64(self.shift)).astype(np.int64)
