"""Two processes train one model: the same result, one voice, and an end together."""

# ruff: noqa: PLC0415, E402 - torch is loaded only where a test needs it

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from schemas.events import Checkpoint, Metric, Result
from schemas.failures import FailureClass
from schemas.recipes import WHISPER
from schemas.steps import PROCESSES, Step, StepSpec
from tests.unit.trainer import tiny
from worker.errors import StepFailed
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.processes import marked_processes
from worker.launchers.verdict import StepDone, StepStopped, classify
from worker.trainer.failures import StepFailureError
from worker.trainer.ranks import ALONE, Ranks, in_ranks

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn of themselves
    pytest.mark.timeout(600),  # a busy machine takes minutes to load torch three times
]
ROOT = Path(__file__).parents[3]
LONG_S = 3600.0
PAUSE_S = 16.0
"""More than torchrun's agent gives a node that shows no sign of life."""
SHORT = {
    "hearings": 2, "anchor_hearings": 2, "epochs": 2, "learning_rate": 5e-3, "batch_size": 8,
    "padding_s": 1.0, "precision": "float32",
}  # fmt: skip
MANY_STEPS = {"epochs": 100}


class Trainings:
    """The real trainer under the real supervisor, as the worker starts it."""

    def __init__(self, folder: Path, inputs: dict[str, Path]) -> None:
        self.folder, self.inputs = folder, inputs

    async def start(self, name: str = "train", processes: int = 2, **parameters):
        output = self.folder / name
        output.mkdir(exist_ok=True)
        spec = StepSpec(
            run_id=tiny.RUN, attempt=1, step=Step.TRAIN, recipe="whisper", recipe_version=WHISPER.version, seed=3,
            parameters=SHORT | parameters, inputs={key: str(path) for key, path in self.inputs.items()},
            output=str(output),
        )  # fmt: skip
        options = LocalOptions(
            command=(sys.executable, "-m", "worker.trainer"),
            scratch_root=self.folder / "scratch",
            threads=2,
            processes=processes,
            added_environment={"PYTHONPATH": str(ROOT)},
        )
        return await LocalLauncher(options).start(spec, lease_s=LONG_S, log=self.log(name))

    def log(self, name: str = "train") -> Path:
        return self.folder / f"{name}.log"

    async def run(self, name: str, processes: int, **parameters):
        handle = await self.start(name, processes, **parameters)
        events = [event async for event in handle.events()]
        done = classify(await handle.wait())
        assert isinstance(done, StepDone), (done, self.log(name).read_text())
        return self.folder / name, events


@pytest.fixture
def trainings(base, dataset, tmp_path) -> Trainings:
    return Trainings(tmp_path, {"base": base, "dataset": dataset, "general": dataset})


def curve(folder: Path, name: str) -> list[float]:
    points = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [point[name] for point in points if name in point]


def ranks_alive() -> dict[int, int]:
    """Pids of the processes that train together, by rank."""
    found = {}
    for marked in marked_processes():
        if marked.run_id != str(tiny.RUN) or marked.supervises:
            continue
        try:
            command = Path(f"/proc/{marked.process.pid}/cmdline").read_bytes()
            mapped = Path(f"/proc/{marked.process.pid}/maps").read_text()
        except OSError:
            continue
        if b"spawn_main" in command and ".states-0" in mapped:
            found[len(found)] = marked.process.pid
    return found


async def steps_done(handle, least: int):
    """The events up to the one that says so many training steps are done."""
    events = handle.events()
    async for event in events:
        if isinstance(event, Metric) and event.name == "loss" and event.steps_done >= least:
            return events
    raise AssertionError("it ended before")


async def test_two_processes_train_what_one_trains(trainings):
    from safetensors.torch import load_file

    alone, _ = await trainings.run("alone", 1)
    together, events = await trainings.run("together", 2)
    assert curve(together, "loss") == pytest.approx(curve(alone, "loss"), rel=1e-4)
    assert curve(together, "dev_loss") == pytest.approx(curve(alone, "dev_loss"), rel=1e-4)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (together, alone))
    base = load_file(trainings.inputs["base"] / "model.safetensors")
    moved = sum(float((theirs[name] - base[name]).square().sum()) for name in base) ** 0.5
    apart = sum(float((theirs[name] - ours[name]).square().sum()) for name in base) ** 0.5
    assert apart < 1e-4 * moved
    assert isinstance(events[-1], Result)
    assert events[-1].figures["processes"] == 2
    assert [event.steps_done for event in events if isinstance(event, Metric) and event.name == "loss"] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip
    assert {path.name for path in together.iterdir()} == {"model.safetensors", "train.json", "curves.jsonl"}


async def test_asked_to_stop_all_stop_after_the_same_step_and_go_on_to_the_same_bytes(trainings):
    whole, _ = await trainings.run("whole", 2, epochs=4)
    handle = await trainings.start(epochs=4, checkpoint_every_s=0)
    events = await steps_done(handle, 3)
    await handle.ask_stop()
    last = [event async for event in events]
    stopped = classify(await handle.wait())
    assert isinstance(stopped, StepStopped), (stopped, trainings.log().read_text())
    [*_, checkpoint] = [event for event in last if isinstance(event, Checkpoint)]
    assert checkpoint.steps_done == stopped.steps_done < 12
    shutil.copytree(trainings.folder / "train", trainings.folder / "fewer")
    fewer, _ = await trainings.run("fewer", 1, epochs=4, checkpoint_every_s=0)
    assert curve(fewer, "loss") == pytest.approx(curve(whole, "loss"), rel=1e-4)
    again, events = await trainings.run("train", 2, epochs=4, checkpoint_every_s=0)
    assert events[-1].figures["resumed_from_step"] == stopped.steps_done
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert curve(again, "loss") == curve(whole, "loss")


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_lost_process_ends_the_step_as_crashed(trainings, rank):
    handle = await trainings.start(**MANY_STEPS)
    await steps_done(handle, 2)
    ranks = ranks_alive()
    assert len(ranks) == 2
    began = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    crashed = classify(await handle.wait())
    assert isinstance(crashed, StepFailed)
    assert (crashed.failure_class, crashed.code) == (FailureClass.CRASHED, "signal_9")
    assert time.monotonic() - began < 25
    assert not ranks_alive()


async def test_paused_and_resumed_together_they_end_well(trainings):
    handle = await trainings.start(epochs=8)
    await steps_done(handle, 2)
    handle.feed(0)
    while not handle.paused:
        await asyncio.sleep(0.01)
    await asyncio.sleep(PAUSE_S)
    handle.feed(LONG_S)
    ended = await handle.wait()
    assert isinstance(classify(ended), StepDone)
    assert ended.paused_s > PAUSE_S - 1


async def test_what_one_of_them_finds_wrong_is_what_the_step_says(trainings, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("audio.i16", "summary.json"):
        (folder / name).write_bytes((trainings.inputs["dataset"] / name).read_bytes())
    lines = (trainings.inputs["dataset"] / "index.jsonl").read_text().splitlines()
    nothing = [json.loads(line) | {"split": "test"} for line in lines]
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in nothing))
    trainings.inputs["dataset"] = folder
    failed = classify(await (await trainings.start()).wait())
    assert isinstance(failed, StepFailed)
    assert (failed.failure_class, failed.code) == (FailureClass.DATA, "no_training_data")


def out_of_memory_in_one(run, ranks):
    """Rank 1 fails while the others wait for it."""
    for step in range(3):
        if ranks.number == 1 and step == 2:
            raise MemoryError
        ranks.sums(step)


def ended_in_one(run, ranks):
    ranks.sums(0)
    if ranks.number == 1:
        os._exit(3)
    ranks.sums(1)


def differing(run, ranks):
    ranks.agreed(7 + ranks.number)


@pytest.mark.parametrize(
    ("work", "failure_class", "code"),
    [
        (out_of_memory_in_one, FailureClass.OUT_OF_MEMORY, "out_of_memory"),
        (ended_in_one, FailureClass.CRASHED, "exit_3"),
        (differing, FailureClass.INFRASTRUCTURE, "disk"),
    ],
)
def test_the_first_failure_among_them_is_the_steps(tmp_path, monkeypatch, work, failure_class, code):
    monkeypatch.setenv(PROCESSES, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run, _ = tiny.step_run(Step.TRAIN, tmp_path / "train", {})
    with pytest.raises(StepFailureError) as failed:
        in_ranks(run, work)
    assert (failed.value.failure_class, failed.value.code) == (failure_class, code)


def test_one_process_alone_is_given_back_what_it_gives():
    assert ALONE.first
    assert ALONE.share([4, 5, 6]) == ([4, 5, 6], True)
    assert ALONE.part(7) == 1.0
    assert ALONE.sums(1.5, 2) == [1.5, 2]
    assert ALONE.agreed(3) == 3


def test_shares_of_a_batch_are_the_batch_and_who_has_none_counts_for_nothing():
    shares = [Ranks(number, 4).share([8, 9, 10]) for number in range(4)]
    assert shares == [([8], True), ([9], True), ([10], True), ([8], False)]
    assert [Ranks(number, 2).share(range(5))[0] for number in range(2)] == [range(0, 5, 2), range(1, 5, 2)]


def test_only_the_training_step_is_told_of_more_processes(tmp_path):
    from worker.launchers.environment import trainer_environment

    spec = StepSpec(
        run_id=tiny.RUN, attempt=1, step=Step.TRAIN, recipe="whisper", recipe_version="1", seed=1, output="/o"
    )
    two = trainer_environment(spec, tmp_path, added={}, devices=["0", "1"], threads=None, processes=2)
    assert (two[PROCESSES], two["CUDA_VISIBLE_DEVICES"]) == ("2", "0,1")
    one = trainer_environment(spec, tmp_path, added={}, devices=["cpu"], threads=None)
    assert (one.get(PROCESSES), one["CUDA_VISIBLE_DEVICES"]) == (None, "")
