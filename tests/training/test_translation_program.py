"""The program of a translation model: one compilation of the step for each shape of batches."""

from __future__ import annotations

from research.data.bitext import Bitext
from research.data.buckets import PairBatches
from research.models.seq2seq import Seq2Seq
from research.objectives.translation import Translation
from research.training.experiment import Experiment
from research.training.program import build


def test_two_epochs_compile_the_step_once_for_each_bucket(tmp_path):
    for name in "st":
        lines = (f"{name} " * (1 + i % 11) + f"{i}\n" for i in range(80))
        (tmp_path / name).write_text("".join(lines))
    data = Bitext(
        corpus="files",
        source=str(tmp_path / "s"),
        target=str(tmp_path / "t"),
        length=16,
        batch_tokens=256,
        buckets=2,
    )
    model = Seq2Seq(vocabulary=262, layers=1, width=8, context=16, attention=None, input_feeding=False)
    experiment = Experiment(name="tiny", model=model, data=data, objective=Translation())
    prepared = data.prepare(vocabulary=262)
    program = build(experiment, prepared)
    state, batches, shapes = program.init(), program.batches(), []
    for _ in range(2 * PairBatches(prepared.train, prepared.buckets, seed=0).batches_per_epoch):
        batch = next(batches)
        shapes.append(batch["tokens"].shape)
        state, _ = program.step(state, program.place(batch))
    assert set(shapes) == {(bucket.rows, bucket.width) for bucket in prepared.buckets}
    assert len(shapes) > len(prepared.buckets) == 2 == program.step._cache_size()
