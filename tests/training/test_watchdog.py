"""The watchdog: a process at a standstill says where it stands and ends with the code to start it again."""

import subprocess
import sys
import time

from research.training.watchdog import Watchdog

PROGRAM = """
import time
from research.training.watchdog import Watchdog

def hang():
    time.sleep(60)

with Watchdog({seconds}) as watchdog:
    for step in range(4):
        time.sleep(0.1)
        watchdog.alive(f"taking step {{step}}")
    {then}
"""


def run(seconds, then):
    code = PROGRAM.format(seconds=seconds, then=then)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_hanging_process_prints_its_stacks_and_ends_with_code_4():
    done = run(0.3, "hang()")
    assert done.returncode == 4
    assert "line 6 in hang" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "headway: no headway for 0.3 s while taking step 3; the same command on all processes goes on from"
        " the last checkpoint"
    )


def test_a_process_that_makes_headway_is_left_alone():
    done = run(0.3, "pass")  # longer than that in all
    assert (done.returncode, done.stderr) == (0, "")
    assert run(None, "pass").returncode == 0


def test_nothing_watches_after_the_end():
    with Watchdog(0.05):
        pass
    time.sleep(0.1)  # long enough for it to strike
