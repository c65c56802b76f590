"""Steps that share nothing with their worker but object storage: conformance, and what only this road shows.

The cluster is the simplest one, processes of this machine; ``test_ray_on_s3`` has a real one. The fake trainer's
witness and report are files of the test's own, by their paths; nothing else passes but through the storage.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.local.s3_server import SECRET_KEY, S3Server
from schemas.digest import file_digest, tree_digest
from schemas.events import Checkpoint, Hello, Result
from schemas.failures import FailureClass
from schemas.steps import Source, StepSpec, checkpoint_prefix, output_prefix
from tests.chaos.proxy import Proxy
from tests.launchers.conformance import LONG_S, Steps, collect, everybody, until
from tests.launchers.remote_cases import RemoteConformance
from tests.s3.storage_place import AwayCluster, StoragePlace, through_storage
from worker.errors import StepFailed
from worker.launchers.exchange import storage as storage_road
from worker.launchers.exchange import storage_rights
from worker.launchers.exchange.sealed import seal
from worker.launchers.exchange.signed_http import AddressRefusedError, read_small, write_small
from worker.launchers.exchange.storage import StorageExchange
from worker.launchers.interface import Handle, LauncherUnavailable
from worker.launchers.verdict import StepDone, classify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.launchers.remote import RemoteLauncher

pytestmark = pytest.mark.s3

MAKER = '''
"""Tells what its inputs hold, leaves one artifact and one checkpoint; the parameters say what it lies about."""
import hashlib, json, os, pathlib, sys
spec = json.load(sys.stdin)
parameters, output = spec["parameters"], pathlib.Path(spec["output"])

def emit(**event):
    os.write(3, json.dumps(event).encode() + b"\\n")

def sha256(data):
    return hashlib.sha256(data).hexdigest()

def told(path):
    path = pathlib.Path(path)
    if path.is_dir():
        return {str(below.relative_to(path)): below.read_text() for below in path.rglob("*") if below.is_file()}
    return path.read_text()

emit(event="hello", recipe="maker", recipe_version="1", pid=os.getpid())
if "manifest" in spec["inputs"]:
    rows = [json.loads(line) for line in open(spec["inputs"]["manifest"])]
    inputs = [open(row["audio"]).read() if os.path.exists(row["audio"]) else row["audio"] for row in rows]
else:
    inputs = {name: told(path) for name, path in spec["inputs"].items()}
checkpoint = output / "checkpoints" / "step-1"
checkpoint.mkdir(parents=True)
state = os.urandom(parameters.get("bytes", 10))
(checkpoint / "state").write_bytes(state)
digest = sha256(f"{sha256(state)}  state\\n".encode())
emit(event="checkpoint", path="checkpoints/step-1", bytes=len(state), steps_done=1,
     sha256="0" * 64 if parameters.get("lie") == "checkpoint" else digest)
(output / "model").mkdir()
(output / "model" / "weights").write_bytes(state)
artifact = {"path": "model/weights", "bytes": len(state),
            "sha256": "0" * 64 if parameters.get("lie") == "result" else sha256(state)}
emit(event="result", figures={"inputs": inputs}, artifacts=[artifact])
'''


class TestThroughStorage(RemoteConformance):
    @pytest.fixture
    def place(self, server: S3Server, tmp_path: Path) -> StoragePlace:
        return StoragePlace(tmp_path / "place", server.http)

    @pytest.fixture
    def away(self, place: StoragePlace) -> RemoteLauncher:
        return through_storage(AwayCluster(), str(place.folder), place.url, place.endpoint)


@pytest.fixture
def place(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoragePlace:
    nodes = tmp_path / "node"
    nodes.mkdir()
    monkeypatch.setenv("TMPDIR", str(nodes))  # where outposts keep what they fetch
    monkeypatch.setenv("WORKER_S3_SECRET_KEY", SECRET_KEY)
    return StoragePlace(tmp_path / "place", server.http)


@pytest.fixture
async def steps(place: StoragePlace, tmp_path: Path) -> AsyncIterator[Steps]:
    made = Steps(place, tmp_path)
    yield made
    for launcher in made.launchers:
        await launcher.close()
    await until(lambda: not everybody(made.run_id))


@pytest.fixture
def maker(tmp_path: Path) -> tuple[str, ...]:
    program = tmp_path / "maker.py"
    program.write_text(MAKER)
    return (sys.executable, "-IS", str(program))


async def made_of(steps: Steps, command: tuple[str, ...], sources: dict[str, Source], **parameters: Any) -> Handle:
    spec = steps.spec("", **parameters).model_copy(update={"sources": sources})
    return await steps.launcher(command=command).start(spec, lease_s=LONG_S, log=steps.log)


def failure_of(verdict: object) -> tuple[FailureClass, str]:
    assert isinstance(verdict, StepFailed), verdict
    return verdict.failure_class, verdict.code


def folder_of(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "made"
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


# --- data ----------------------------------------------------------------------------------------------------------


async def test_inputs_come_from_storage_and_outputs_are_there_when_they_are_told_of(
    steps: Steps, place: StoragePlace, maker: tuple[str, ...], tmp_path: Path
):
    folder = folder_of(tmp_path, dataset__a="one", dataset__b__c="two", beside="three")
    storage = place.storage()
    await storage.upload_folder(folder, "runs/x/1/prepare")
    await storage.put_bytes("single", b"alone")
    sources = {
        "dataset": Source(address="runs/x/1/prepare", sha256=tree_digest(folder), inside="dataset"),
        "single": Source(address="single"),
    }
    handle = await made_of(steps, maker, sources, bytes=3_000_000)
    there = []
    async for event in handle.events():
        match event:
            case Checkpoint():
                await storage.check(checkpoint_prefix(handle.spec, 1), event.sha256)
                there.append("checkpoint")
            case Result(figures=figures, artifacts=[artifact]):
                await storage.check(f"{output_prefix(handle.spec)}/model/weights", artifact.sha256)
                there.append("result")
                assert figures["inputs"] == {"dataset": {"a": "one", "b/c": "two"}, "single": "alone"}
    assert there == ["checkpoint", "result"]
    assert isinstance(classify(await handle.wait()), StepDone)
    assert not list(steps.output.iterdir())  # nothing went by paths
    assert not list((tmp_path / "node").iterdir())  # and nothing is left on the node


async def test_recordings_of_a_manifest_come_with_it_and_a_lost_one_is_the_steps_to_judge(
    steps: Steps, place: StoragePlace, maker: tuple[str, ...], tmp_path: Path
):
    storage, rows = place.storage(), []
    for n in range(20):
        file = tmp_path / f"{n}.wav"
        file.write_text(f"sound {n}")
        key = f"organizations/1/models/2/data/{n}"
        if n != 7:
            await storage.put_file(file, key)
        rows.append({"audio": key, "audio_sha256": file_digest(file), "audio_bytes": file.stat().st_size, "row": n})
    rows[9]["audio_sha256"] = "0" * 64
    manifest = "".join(json.dumps(row) + "\n" for row in rows).encode()
    await storage.put_bytes("manifest.jsonl", manifest)
    handle = await made_of(steps, maker, {"manifest": Source(address="manifest.jsonl", lists_recordings=True)})
    verdict = classify(await handle.wait())
    assert isinstance(verdict, StepDone), verdict
    told = verdict.result.figures["inputs"]
    assert told[7] == "/nowhere/organizations/1/models/2/data/7"
    assert told[9] == "/nowhere/organizations/1/models/2/data/9"
    assert [told[n] for n in range(20) if n not in (7, 9)] == [f"sound {n}" for n in range(20) if n not in (7, 9)]


async def test_input_with_another_digest_never_reaches_the_step(
    steps: Steps, place: StoragePlace, maker: tuple[str, ...]
):
    await place.storage().put_bytes("single", b"alone")
    handle = await made_of(steps, maker, {"single": Source(address="single", sha256="0" * 64)})
    assert failure_of(classify(await handle.wait())) == (FailureClass.INFRASTRUCTURE, "input_spoiled")
    assert not [event for event in await collect(handle) if isinstance(event, Hello)]


async def test_input_that_is_nowhere_is_said_so(steps: Steps, maker: tuple[str, ...]):
    handle = await made_of(steps, maker, {"base": Source(address="bases/en/none")})
    assert failure_of(classify(await handle.wait())) == (FailureClass.INFRASTRUCTURE, "input_unreachable")


async def test_output_that_differs_from_its_digest_is_no_result(steps: Steps, maker: tuple[str, ...]):
    handle = await made_of(steps, maker, {}, lie="result")
    assert failure_of(classify(await handle.wait())) == (FailureClass.INFRASTRUCTURE, "output_not_stored")


async def test_checkpoint_that_differs_from_its_digest_is_not_told_of(steps: Steps, maker: tuple[str, ...]):
    handle = await made_of(steps, maker, {}, lie="checkpoint")
    assert not [event for event in await collect(handle) if isinstance(event, Checkpoint)]
    assert isinstance(classify(await handle.wait()), StepDone)


# --- rights --------------------------------------------------------------------------------------------------------


async def test_addresses_expire_and_are_renewed_while_the_step_runs(
    steps: Steps, place: StoragePlace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage_rights, "ADDRESS_S", 2.0)
    monkeypatch.setattr(storage_road, "FRESH_S", 1.0)
    storage = place.storage()
    await storage.put_bytes("x", b"x")
    address = await storage.signed_url("x", 2.0)
    assert await asyncio.to_thread(read_small, address, 10) == b"x"
    handle = await steps.start("succeed", steps=60, step_s=0.1, checkpoint_every=10)
    assert isinstance(classify(await handle.wait()), StepDone)
    with pytest.raises(AddressRefusedError) as refused:
        await asyncio.to_thread(read_small, address, 10)
    assert "Signature=" not in str(refused.value)
    told = [event.steps_done for event in await collect(handle) if isinstance(event, Checkpoint)]
    assert told == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("how", ["refuse", "pause"])
async def test_storage_that_is_away_for_some_seconds_costs_a_step_nothing(
    server: S3Server, place: StoragePlace, tmp_path: Path, how: str
):
    async with Proxy(server.http, postgres=False) as proxy:
        place.endpoint = proxy.url
        steps = Steps(place, tmp_path)
        handle = await steps.start("succeed", steps=80, step_s=0.1, checkpoint_every=10)
        await until(lambda: steps.has("checkpoint"))
        getattr(proxy, how)()
        proxy.cut()
        done = sum(tick["what"] == "step" for tick in steps.ticks())
        await until(lambda: steps.has("step", done + 40))
        proxy.resume()
        ended = await handle.wait()
        assert isinstance(classify(ended), StepDone), ended
        assert ended.paused_s == 0
        told = [event.steps_done for event in await collect(handle) if isinstance(event, Checkpoint)]
        assert told == [10, 20, 30, 40, 50, 60, 70, 80]
        assert [tick["n"] for tick in steps.ticks() if tick["what"] == "step"] == list(range(1, 81))
        await handle.kill()


async def test_a_job_that_the_cluster_starts_twice_is_started_in_vain(steps: Steps, place: StoragePlace):
    handle = await steps.start("succeed", steps=100, step_s=0.05)
    await until(lambda: steps.has("step", 3))
    [command] = place.commands()
    again = await asyncio.to_thread(subprocess.run, ["sh", "-c", command], capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "FileExistsError" in again.stderr
    assert isinstance(classify(await handle.wait()), StepDone)
    assert len({tick["pid"] for tick in steps.ticks()}) == 1


async def test_nothing_the_job_can_see_is_a_credential_of_the_storage(
    steps: Steps, place: StoragePlace, tmp_path: Path
):
    handle = await steps.start("succeed", steps=100_000, checkpoint_every=20)
    await until(lambda: steps.has("checkpoint", 2))
    [command] = place.commands()
    seen = {"command": command.encode()}
    processes = [marked.process.pid for marked in everybody(steps.run_id)]
    outposts = [int(path.read_text()) for path in place.cluster.folder.glob("speech-*") if not path.suffix]
    for pid in [*processes, *outposts]:
        for name in ("environ", "cmdline"):
            seen[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    for path in (tmp_path / "node").rglob("*"):
        if path.is_file():
            seen[str(path)] = path.read_bytes()
    exchange = await steps.launchers[0]._exchanges.newest(steps.run_id, 1, handle.spec.step)
    assert exchange is not None
    storage = place.storage()
    async for stored in storage.listing("steps"):
        seen[stored.key] = await storage.get_bytes(stored.key, 2**20)
    word = await exchange._rights.addresses(handle.spec, await exchange.question())
    seen["addresses"] = json.dumps([word, (await exchange.order()).model_dump(mode="json")]).encode()
    assert len(processes) >= 2
    assert len(outposts) == 1
    assert [name for name, content in seen.items() if SECRET_KEY.encode() in content] == []
    await handle.kill()


async def test_whoever_sees_the_command_line_reads_nothing_and_cannot_take_the_step_any_more(
    steps: Steps, place: StoragePlace
):
    handle = await steps.start("succeed", steps=200, step_s=0.05, note="signed-address-very-secret")
    await until(lambda: steps.has("step", 3))
    claim, word = re.findall(r"http\S+?(?=['\s]|$)", place.commands()[0])
    letter = await asyncio.to_thread(read_small, word, 2**20)
    for plain in (b"very-secret", str(steps.run_id).encode(), b"http"):
        assert plain not in letter
    with pytest.raises(AddressRefusedError):
        await asyncio.to_thread(read_small, claim, 2**20)
    await asyncio.to_thread(write_small, claim, os.urandom(32))
    next_one = steps.launcher()
    adopted = await next_one.adopt(steps.run_id, 2, handle.spec.step, lease_s=LONG_S, log=steps.log)
    assert adopted is not None
    assert isinstance(classify(await adopted.wait()), StepDone)
    await handle.wait()


async def test_a_word_that_cannot_be_understood_is_passed_over(steps: Steps, place: StoragePlace):
    handle = await steps.start("succeed", steps=60, step_s=0.05)
    await until(lambda: steps.has("step", 3))
    storage, prefix = place.storage(), f"steps/{steps.run_id}/1-train-1"
    key = await storage.get_bytes(f"{prefix}/key", 32)
    for nonsense in (seal(key, b'{"grant": 1}'), b"no letter at all"):
        await storage.put_bytes(f"{prefix}/word", nonsense)
        await asyncio.sleep(0.1)
    assert isinstance(classify(await handle.wait()), StepDone)


async def test_step_killed_before_its_job_begins_is_taken_from_it(steps: Steps, place: StoragePlace):
    away = through_storage(AwayCluster(), str(place.folder), place.url, place.endpoint)
    with pytest.raises(LauncherUnavailable, match="cluster_unreachable"):
        await away.start(steps.spec("succeed"), lease_s=LONG_S, log=steps.log)
    exchange = await away._exchanges.newest(steps.run_id, 1, steps.spec("").step)
    assert isinstance(exchange, StorageExchange)
    job = [*away._options.outpost, *await exchange.arguments()]
    late = await asyncio.to_thread(subprocess.run, job, capture_output=True, text=True, check=False)
    assert "FileExistsError" in late.stderr
    assert not steps.has("start")


@pytest.mark.parametrize(
    "want",
    [
        "get:organizations/2/models/1/data/x",
        "get:bases/en/1",
        "get:bases/en/abcd",
        "put:prepare/x",
        "put:train/../../2/train/x",
        "put:../x",
        "own:owner",
        "own:word",
        "own:started",
        "own:order.json",
        "own:closed",
        "own:events/../owner",
        "what:train/x",
        "",
    ],
)
async def test_a_step_gets_no_address_for_what_is_not_its_own(steps: Steps, place: StoragePlace, want: str):
    sources = {"base": Source(address="bases/en/abc")}
    spec: StepSpec = steps.spec("succeed").model_copy(update={"sources": sources})
    launcher = steps.launcher()
    exchange = await launcher._ordered(spec, "me")
    assert await exchange._rights.signed(spec, want) is None
    for own in ("get:bases/en/abc/model.safetensors", "put:train/x", "put:checkpoints/00000001/x", "own:log"):
        address = await exchange._rights.signed(spec, own)
        assert address is not None
        assert "Signature=" in address
