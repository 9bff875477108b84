"""Phrase-based translation by definition: every derivation of a sentence enumerated and scored."""

from __future__ import annotations

import itertools

import numpy as np

from research.statistical.ngram_model import estimate
from research.statistical.phrase_table import PhraseTable
from research.statistical.translation_options import FEATURES

TEXT = [
    "das haus ist klein",
    "das ist ein kleines haus",
    "er geht nach hause",
    "es geht ihm gut",
    "das haus geht er an",
    "ein haus ist das ja nicht",
]
MODEL = estimate([line.split() for line in TEXT], 3)
GERMAN = sorted({word for line in TEXT for word in line.split()})
ENGLISH = ["the", "house", "is", "small", "he", "goes"]


def random_table(seed, *, longest=3, options=2, share=0.6):
    """Returns a table with random translations of ``share`` of the phrases of up to ``longest`` words."""
    rng = np.random.default_rng(seed)
    sources, targets = {}, []
    phrases = [p for n in range(1, longest + 1) for p in itertools.product(ENGLISH, repeat=n)]
    for phrase in phrases:
        if rng.random() < share:
            count = int(rng.integers(1, options + 1))
            sources[phrase] = (len(targets), len(targets) + count)
            targets += [tuple(rng.choice(GERMAN, rng.integers(1, 4)).tolist()) for _ in range(count)]
    shape = (len(targets), 3)
    reordering = [rng.dirichlet(np.ones(3), len(targets)) for _ in range(2)]
    return PhraseTable(
        sources,
        targets,
        np.log(rng.uniform(0.05, 1, (shape[0], 4))).astype(np.float32),
        np.log(np.concatenate(reordering, axis=1) + 0.01).astype(np.float32),
    )


def random_weights(seed):
    """Returns weights that make every feature matter."""
    rng = np.random.default_rng(seed)
    return dict(zip(FEATURES, rng.uniform(0.1, 1, len(FEATURES)).tolist(), strict=True)) | {"unknown": -5.0}


def steps(sentence, table):
    """Returns (start, end, words, four scores, six of reordering, whether unknown) of every option."""
    found = []
    for start in range(len(sentence)):
        for end in range(start + 1, len(sentence) + 1):
            phrase = tuple(sentence[start:end])
            if phrase in table.sources:
                for row in range(*table.sources[phrase]):
                    found.append(
                        (start, end, table.targets[row], table.scores[row], table.reordering[row], 0)
                    )
            elif end == start + 1:
                found.append((start, end, phrase, [0.0] * 4, [0.0] * 6, 1))
    return found


def every_derivation(sentence, table, limit):
    """Yields all sequences of options that cover the sentence within the limit, as Moses understands it."""
    options = steps(sentence, table)

    def extended(path, covered):
        if len(covered) == len(sentence):
            yield path
            return
        gap = min(set(range(len(sentence))) - covered)
        at = path[-1][1] if path else 0
        for option in options:
            start, end = option[:2]
            if covered & set(range(start, end)) or abs(start - at) > limit:
                continue
            if start != gap and end - gap > limit:
                continue
            yield from extended([*path, option], covered | set(range(start, end)))

    yield from extended([], frozenset())


def vector(path):
    """Returns the feature vector of a derivation, but for the language model."""
    value = dict.fromkeys(FEATURES, 0.0)
    value["words"], value["phrases"] = sum(len(option[2]) for option in path), len(path)
    before = (-1, 0, None, None, None, None)
    for option in path:
        start, end, _, scores, reordering, unknown = option
        value["unknown"] += unknown
        value["distortion"] -= abs(start - before[1])
        for name, score in zip(FEATURES[5:9], scores, strict=True):
            value[name] += score
        orientation = 0 if start == before[1] else 1 if end == before[0] else 2
        kind = ("monotone", "swap", "discontinuous")[orientation]
        value[f"previous_{kind}"] += reordering[orientation]
        if before[4] is not None:
            value[f"next_{kind}"] += before[4][3 + orientation]
        before = option
    return list(value.values())


def ranked(sentence, table, weights, limit, model=MODEL):
    """Returns [(score, words, features)] of every different translation, the best first."""
    paths = list(every_derivation(sentence, table, limit))
    texts = [tuple(word for option in path for word in option[2]) for path in paths]
    features = np.array([vector(path) for path in paths])
    different = sorted(set(texts))
    scores = [float(score.sum()) for score in model.score_words(different)]
    by_text = dict(zip(different, scores, strict=True))
    features[:, 0] = [by_text[text] for text in texts]
    total = features @ [weights[name] for name in FEATURES]
    best = {}
    for at in np.argsort(-total, kind="stable").tolist():
        best.setdefault(texts[at], (float(total[at]), texts[at], features[at]))
    return list(best.values())
