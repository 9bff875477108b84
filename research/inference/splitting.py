"""Cutting a line that is too long for a model where sentences or clauses end."""

from __future__ import annotations

from collections.abc import Sequence

_CLOSING = "\"'\u201d\u2019\u00bb)]"
_SENTENCE = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")
_CLAUSE = (",", ";", ":", "-", "\u2013", "\u2014", "\uff0c", "\uff1b")
"""With the ellipsis, the full-width marks and the dashes."""
_ENTITIES = ("&quot;", "&apos;", "&#93;")
"""Closing marks as Moses's tokenizer writes them."""


def split_words(words: Sequence[str], sizes: Sequence[int], limit: int) -> list[list[str]]:
    """Returns the words in successive pieces that are at most ``limit`` large.

    A piece is as large as may be, but ends where a sentence does; if none ends in it, where a clause does; if
    none, anywhere. A word that is larger than the limit is a piece of its own.

    Args:
      words: words of the line.
      sizes: size of each, in tokens.
      limit: largest size of a piece.
    """
    ranks: list[int] = []
    for word in words:  # a closing mark that stands alone ends what the word before it has ended
        alone = word in _ENTITIES or not word.strip(_CLOSING)
        ranks.append(ranks[-1] if alone and ranks else _rank(word))
    pieces: list[list[str]] = []
    start = 0
    while start < len(words):
        end, total = start, 0
        while end < len(words) and (end == start or total + sizes[end] <= limit):
            total += sizes[end]
            end += 1
        if end < len(words):
            # Closing marks that stand alone belong to the piece before them.
            places = [n for n in range(start + 1, end + 1) if not _closes(words[n])]
            end = max(places, key=lambda n: (ranks[n - 1], n), default=end)
        pieces.append(list(words[start:end]))
        start = end
    return pieces


def _rank(word: str) -> int:
    """Returns 2 for a word that ends a sentence, 1 for one that ends a clause, 0 for others."""
    for entity in _ENTITIES:
        word = word.replace(entity, '"')
    bare = word.rstrip(_CLOSING) or word
    return 2 if bare.endswith(_SENTENCE) else 1 if bare.endswith(_CLAUSE) else 0


def _closes(word: str) -> bool:
    return word in _ENTITIES or not word.strip(_CLOSING + "".join(_SENTENCE + _CLAUSE))
