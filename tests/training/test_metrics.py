"""Means, event files, and the progress display."""

import io
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from research.training import progress
from research.training.metrics import MetricsWriter, Stopwatch, Window
from research.training.progress import Display
from research.training.run_directory import RunDirectory


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def events(directory):
    """The events of a run's event files, in the order written (TFRecord: length, crc, data, crc)."""
    found = []
    for file in sorted(
        directory.events.glob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime_ns
    ):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(directory):
    return [(e.step, v.tag, v.simple_value) for e in events(directory) for v in e.summary.value]


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "events").mkdir()
    return RunDirectory(tmp_path)


def test_a_window_is_the_mean_but_for_the_learning_rate():
    window = Window()
    for step in (1, 2, 6):
        window.add({"train/loss": float(step), "train/learning_rate": step / 10})
    assert window.take() == {"train/loss": 3.0, "train/learning_rate": 0.6}
    window.add({"train/loss": 5.0})
    assert window.take() == {"train/loss": 5.0}


def test_a_window_goes_on_from_a_checkpoint():
    straight, before = Window(), Window()
    values = [0.1, 0.7, 1.3, 2.9]
    for value in values:
        straight.add({"train/loss": value})
    for value in values[:2]:
        before.add({"train/loss": value})
    after = Window(before.to_json())
    for value in values[2:]:
        after.add({"train/loss": value})
    assert after.take() == straight.take()


def test_a_stopwatch_leaves_pauses_out(clock):
    watch = Stopwatch()
    clock.now = 2.0
    with watch.paused():
        clock.now = 5.0
    clock.now = 6.0
    assert watch.seconds() == 3.0


def test_event_files_hold_the_rows_and_a_resume_purges(directory):
    writer = MetricsWriter(directory, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": float(step), "seconds": 0.5})
    writer.close()
    assert scalars(directory) == [
        (step, tag, value) for step in (1, 2, 3) for tag, value in (("train/loss", step), ("seconds", 0.5))
    ]
    writer = MetricsWriter(directory, 2)
    writer.write(3, {"train/loss": 9.0})
    writer.close()
    assert directory.rows() == [
        {"step": 1, "train/loss": 1.0, "seconds": 0.5},
        {"step": 2, "train/loss": 2.0, "seconds": 0.5},
        {"step": 3, "train/loss": 9.0},
    ]
    # TensorBoard drops what is at or after the step of a session's START.
    starts = [event.step for event in events(directory) if event.HasField("session_log")]
    assert starts == [1, 3]
    MetricsWriter(directory, 0).close()
    assert directory.rows() == []


def test_starting_anew_removes_the_events_of_before(directory):
    for value in (1.0, 2.0):
        writer = MetricsWriter(directory, 0)
        writer.write(1, {"train/loss": value})
        writer.close()
    assert scalars(directory) == [(1, "train/loss", 2.0)]


def begin(stream, **options):
    display = Display(stream, **options)
    display.begin(0, 1000, tokens=512, flops=2e9, flops_causal=1.5e9)
    return display


def test_plain_lines_say_what_the_run_does():
    stream = io.StringIO()
    display = begin(stream, every=0.0)
    display.update(1, 7.0, 0.0, 1)
    display.update(11, 6.5, 1.0, 11)
    display.evaluation(11, {"valid/loss": 6.25, "valid/bits_per_byte": 3.5})
    display.close()
    # Ten steps a second: 5,120 tokens/s, 20 GFLOP/s, and 989 steps are left.
    assert stream.getvalue().splitlines() == [
        "step 1/1000  loss 7.0000",
        "step 11/1000  loss 6.5000  5,120 tokens/s  20 GFLOP/s (15 GFLOP/s causal)  1:39 left",
        "step 11/1000  validation: loss 6.2500  bits_per_byte 3.5000",
    ]


def test_the_speed_is_that_of_the_last_seconds():
    stream = io.StringIO()
    display = begin(stream, every=0.0)
    for second in range(30):  # one step a second, ...
        display.update(second + 1, 1.0, float(second), second + 1)
    for second in range(30, 60):  # ... then ten
        step = 31 + 10 * (second - 29)
        display.update(step, 1.0, float(second), step)
    assert "  5,120 tokens/s" in stream.getvalue().splitlines()[-1]


def test_batches_narrower_than_the_widest_are_counted_as_such():
    stream = io.StringIO()
    display = begin(stream, every=0.0)
    display.update(1, 7.0, 0.0, 0.25)
    display.update(11, 6.5, 1.0, 2.75)
    # 10 steps a second, each of a quarter of 512 tokens; what is left is reckoned in steps.
    assert stream.getvalue().splitlines()[-1].split("  ")[2:] == [
        "1,280 tokens/s",
        "5 GFLOP/s (3.75 GFLOP/s causal)",
        "1:39 left",
    ]


def test_plain_lines_are_few_and_the_last_step_is_among_them():
    stream = io.StringIO()
    display = begin(stream, every=60.0)
    for step in range(1, 1001):
        display.update(step, 1.0, step / 10, step)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == [
        "step 1/1000",
        "step 1000/1000",
    ]


def test_a_terminal_is_drawn_four_times_a_second_and_left_as_it_was(clock):
    stream = Terminal()
    display = begin(stream)
    drawn = []
    for step in range(1, 1000):
        clock.now = step / 1000
        before = stream.tell()
        display.update(step, 6.5, clock.now, step)
        if stream.tell() > before:
            drawn.append(step)
    assert drawn == [1, 251, 501, 751]
    display.note("[not markup]")
    display.close()
    assert "loss 6.5000" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()
    assert "/1000" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again
