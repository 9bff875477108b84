"""Phrase-based translation of Multi30k, English to German.

    headway train experiments/translation/phrase_based.py --data.directory MULTI30K
    headway evaluate runs/phrase-based

The owners' lower-cased tokenised text; HMM alignments in both directions, grow-diag-final-and, phrases of
up to seven words, Kneser-Ney smoothing, lexicalised reordering, a 5-gram model, batch MIRA on the
validation text. Measured (one run, tokenised BLEU): 37.15 on the validation text that it is tuned on (36.58
before), and 34.8 / 27.8 / 24.6 on test_2016_flickr / test_2017_flickr / test_2017_mscoco; Moses on the same
files 35.0 / 28.0 / 25.0. 79 sentences a second on two quiet cores.
"""

from research.statistical.aligner import Aligner
from research.statistical.phrase_table import Phrases
from research.statistical.stack_decoder import Search
from research.statistical.tuning import Tuning
from research.training.phrase_based import PhraseBased


def experiment() -> PhraseBased:
    return PhraseBased(
        name="phrase-based",
        alignment=Aligner(model="hmm", symmetrize="grow-diag-final-and"),
        phrases=Phrases(smoothing="kneser-ney"),
        search=Search(stack=30, candidates=300),
        tuning=Tuning(largest_step=0.01),
    )
