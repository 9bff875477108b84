"""Phrase-based translation of Multi30k, English to German.

headway train experiments/translation/phrase_based.py --data.directory MULTI30K
headway evaluate runs/phrase-based
"""

from research.statistical.aligner import Aligner
from research.training.phrase_based import PhraseBased


def experiment() -> PhraseBased:
    return PhraseBased(
        name="phrase-based",
        alignment=Aligner(model="hmm", symmetrize="grow-diag-final-and"),
    )
