"""Processes of one user that may not look at each other. All without capabilities: to root nothing is closed."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.launchers import unprivileged
from worker.launchers.environment import private_environment
from worker.launchers.processes import ATTEMPT_MARK, SUPERVISED

SPY = Path(__file__).parent / "spy.py"
ROOT = Path(__file__).parent.parent.parent
REFUSED = {"environment": "PermissionError", "memory": "PermissionError", "ptrace": "PermissionError"}

_PARENT = """
import json, os, subprocess, sys
{begin}
print(subprocess.run([sys.executable, sys.argv[1], str(os.getpid())], capture_output=True, text=True).stdout)
"""
_COMMAND = """
import json, os, subprocess, sys
from worker.cli import parser
def look(*_):
    print(subprocess.run([sys.executable, sys.argv[1], str(os.getpid())], capture_output=True, text=True).stdout)
    sys.exit(0)
parser.read_settings = look
parser.main([{command!r}])
"""
_OLD_SWEEP = """
import sys
from worker.launchers import processes, strays
from worker.launchers.processes import Marked, all_processes, is_dead
def marked_processes():
    for process in all_processes().values():
        if is_dead(process):
            continue
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                variables = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\\0"))
        except OSError:
            continue
        run_id, _, attempt = variables.get(b"TRAINING_ATTEMPT", b"").decode().rpartition(":")
        if run_id == sys.argv[1]:  # tests beside this one have trainers, too
            yield Marked(process, run_id, int(attempt), supervises=b"TRAINING_SUPERVISOR" in variables)
strays.marked_processes = marked_processes
print(strays.sweep_strays())
"""


@pytest.mark.parametrize("command", ["run", "api"])
def test_a_child_of_worker_or_api_cannot_look_at_it(command):
    done = unprivileged.run("-c", _COMMAND.format(command=command), str(SPY), cwd=ROOT)
    assert json.loads(done.stdout) == REFUSED


def test_the_same_child_can_look_at_a_process_that_did_not_close_itself():
    """Or the tests above would be green in a place where nobody can look at anybody."""
    done = unprivileged.run("-c", _PARENT.format(begin=""), str(SPY), cwd=ROOT)
    assert json.loads(done.stdout) == dict.fromkeys(REFUSED, "done")


def test_a_trainer_cannot_look_at_its_supervisor_and_the_hunt_still_finds_both(tmp_path):
    """Both at once: what closes the supervisor to its trainer closes its environment to the worker as well."""
    run = str(uuid.uuid4())
    program = f"""
import asyncio, json, os, sys
from pathlib import Path
from uuid import UUID
from schemas.steps import Step, StepSpec
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.processes import marked_processes
folder = Path({str(tmp_path)!r})
spy = "import os, json, time, sys; sys.path.insert(0, {str(SPY.parent)!r}); import spy; " \\
      "(open({str(tmp_path / "seen")!r}, 'w')).write(json.dumps(spy.looked(os.getppid()))); time.sleep(100)"
async def main():
    launcher = LocalLauncher(LocalOptions(command=(sys.executable, "-c", spy), scratch_root=folder / "scratch",
                                          isolation="none"))
    spec = StepSpec(run_id=UUID({run!r}), attempt=1, step=Step.TRAIN, recipe="x", recipe_version="1", seed=1,
                    output=str(folder))
    handle = await launcher.start(spec, lease_s=100, log=folder / "log")
    while not (folder / "seen").exists() or not (folder / "seen").read_text():
        await asyncio.sleep(0.01)
    found = sorted(marked.supervises for marked in marked_processes() if marked.run_id == {run!r})
    strays = await launcher.sweep()
    await handle.kill()
    print(json.dumps([json.loads((folder / "seen").read_text()), found, strays]))
asyncio.run(main())
"""
    done = unprivileged.run("-c", program, cwd=ROOT)
    assert json.loads(done.stdout) == [REFUSED, [False, True], 0]


def test_a_worker_of_0_1_0_beside_us_leaves_our_trainers_alone(tmp_path):
    """It looks for marks in environments only, cannot read our supervisors', and ends whom no supervisor watches."""
    run = str(uuid.uuid4())
    program = f"""
import asyncio, json, subprocess, sys
from pathlib import Path
from uuid import UUID
from schemas.steps import Step, StepSpec
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.processes import marked_processes
folder = Path({str(tmp_path)!r})
trainer = "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); " \\
          "(open({str(tmp_path / "begun")!r}, 'w')).close(); time.sleep(100)"
async def main():
    launcher = LocalLauncher(LocalOptions(command=(sys.executable, "-c", trainer), scratch_root=folder / "scratch",
                                          isolation="none"))
    spec = StepSpec(run_id=UUID({run!r}), attempt=1, step=Step.TRAIN, recipe="x", recipe_version="1", seed=1,
                    output=str(folder))
    handle = await launcher.start(spec, lease_s=100, log=folder / "log")
    while not (folder / "begun").exists():
        await asyncio.sleep(0.01)
    old = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", {_OLD_SWEEP!r}, {run!r}],
                                  capture_output=True, text=True)
    ours = sorted(marked.supervises for marked in marked_processes() if marked.run_id == {run!r})
    await handle.kill()
    print(json.dumps([old.stdout.strip(), old.stderr, ours]))
asyncio.run(main())
"""
    done = unprivileged.run("-c", program, cwd=ROOT)
    assert json.loads(done.stdout) == ["0", "", [False, False, True]]


def test_a_stranger_who_names_our_argument_is_nobodys_supervisor():
    """Its environment can be read, and what it says there counts."""
    run = str(uuid.uuid4())
    program = f"from worker.launchers.processes import marked_processes\nprint([m.run_id for m in marked_processes() if m.run_id == {run!r}])"
    stranger = subprocess.Popen(unprivileged.command("-c", "import time; time.sleep(100)", f"{SUPERVISED}{run}:1"))
    try:
        assert unprivileged.run("-c", program, cwd=ROOT).stdout.strip() == "[]"
    finally:
        stranger.kill()
        stranger.wait()


def test_a_file_in_the_scratch_folder_is_no_module_of_the_trainer(tmp_path):
    """Whoever writes a torch.py there would otherwise be imported by the next process."""
    (tmp_path / "torch.py").write_text("print('taken')")
    (tmp_path / "trainer.py").write_text("")
    probe = "import sys, importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else None, sys.path)"
    environment = private_environment(tmp_path) | {ATTEMPT_MARK: "x"}
    found = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert str(tmp_path) not in found
    assert os.fspath(tmp_path) not in found.split()[0]
