"""What /proc tells of a process while it changes its program, again and again."""

import os
import subprocess
import sys
import uuid

from worker.launchers.processes import ATTEMPT_MARK, is_dead, marked_processes, read_process
from worker.launchers.strays import stop_marked

_AGAIN = """
import os, sys
if left := int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, "-IS", "-c", os.environ["AGAIN"], str(left - 1)])
"""


def _changing(run: str, times: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-IS", "-c", _AGAIN, str(times)],
        env=os.environ | {ATTEMPT_MARK: f"{run}:1", "AGAIN": _AGAIN},
    )


def test_a_process_is_seen_while_it_changes_its_program():
    """Without a second look at an empty environment one look in about 200 misses it."""
    run = str(uuid.uuid4())
    children = [_changing(run, 100) for _ in range(4)]
    looks, missed = 0, 0
    while all(child.poll() is None for child in children):
        found = {marked.process.pid for marked in marked_processes() if marked.run_id == run}
        for child in children:
            now = read_process(child.pid)
            if now is not None and not is_dead(now):
                looks += 1
                missed += child.pid not in found
    for child in children:
        child.wait()
    assert looks > 100
    assert missed == 0, f"{missed} of {looks}"


def test_it_is_ended_in_the_middle_of_it():
    run = str(uuid.uuid4())
    children = [_changing(run, 10_000) for _ in range(4)]
    stop_marked(lambda marked: marked.run_id == run)
    assert [child.wait(timeout=10) for child in children] == [-9] * 4
