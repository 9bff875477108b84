"""Phrase-based translation of Multi30k, English to German.

headway train experiments/translation/phrase_based.py --data.directory MULTI30K
headway evaluate runs/phrase-based
"""

from research.statistical.aligner import Aligner
from research.statistical.phrase_table import Phrases
from research.statistical.stack_decoder import Search
from research.training.phrase_based import PhraseBased


def experiment() -> PhraseBased:
    return PhraseBased(
        name="phrase-based",
        alignment=Aligner(model="hmm", symmetrize="grow-diag-final-and"),
        phrases=Phrases(smoothing="kneser-ney"),
        search=Search(stack=30, candidates=300),
    )
