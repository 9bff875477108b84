"""Text as it is written, of lines in the form of Moses's tokenizer (Koehn et al., 2007)."""

from __future__ import annotations

_ESCAPES = (
    ("&apos;", "'"), ("&quot;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&#91;", "["), ("&#93;", "]"),
    ("&#124;", "|"), ("&amp;", "&"),
)  # fmt: skip
"""What the tokenizer writes for what has a meaning in Moses's files; the ampersand last."""
_CLOSING = frozenset(".,;:!?)]}%…»”")
_OPENING = frozenset("([{$#«„“¿¡")
_ELIDING = ("fr", "it")
"""Languages in which a word that ends in an apostrophe is one with the word after it."""


def detokenised(line: str, language: str) -> str:
    """Returns a tokenised line without the spaces that the tokenizer put in, and without its escapes.

    Quotation marks open and close by turns; case stays as it is.

    Args:
      line: words divided by spaces.
      language: two letters; apostrophes of French and Italian belong to the word before the next.
    """
    for written, meant in _ESCAPES:
        line = line.replace(written, meant)
    text, joined, quotes = "", True, 0  # joined: the next word follows without a space
    for word in line.split():
        opens, closes = word in _OPENING, all(character in _CLOSING for character in word)
        if word == '"':
            opens, closes = quotes % 2 == 0, quotes % 2 == 1
            quotes += 1
        elif word.startswith("'") and (language not in _ELIDING or len(word) == 1):
            closes = True
        text += word if joined or closes else f" {word}"
        joined = opens or (language in _ELIDING and word.endswith("'") and len(word) > 1)
    return text
