"""The typed client: generated, compiled strictly, and run against the live API with every answer checked."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.client.generate import CLIENT, generated
from worker.store.database import queries

FOLDER = Path(__file__).parents[2] / "deploy" / "client"
RUNS = queries("runs")


def test_the_generated_client_is_current():
    assert CLIENT.read_text(encoding="utf-8") == generated(), "run: python deploy/client/generate.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The client compiled with `tsc --strict`."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("needs Node.js with npm")
    folder = tmp_path_factory.mktemp("client")
    for file in (*FOLDER.glob("*.ts"), *FOLDER.glob("*.json")):
        shutil.copy(file, folder)
    if (FOLDER / "node_modules").is_dir():
        (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    else:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=110)
    compiled = subprocess.run(["npx", "tsc"], cwd=folder, capture_output=True, text=True, check=False, timeout=110)
    assert compiled.returncode == 0, compiled.stdout
    return folder / "built"


async def as_the_worker(live) -> None:
    """Take the next run and end it well."""
    rows = []
    while not rows or rows[0]["id"] is None:
        rows = await live.database.fetch(RUNS["claim_runs"], "worker-1", 1, 60.0, [uuid4()])
        await asyncio.sleep(0.05)
    move = {
        "run_id": str(rows[0]["id"]), "attempt": 1, "from_status": 3, "to_status": 4, "transition_id": str(uuid4()),
        "figures": {"wer_base": 0.5, "wer_custom": 0.25}, "gate": "published", "version_address": "runs/x",
        "version_sha256": "0" * 64, "version_figures": {},
    }  # fmt: skip
    await live.database.fetch(RUNS["settle_runs"], [move])


async def test_the_client_walks_the_whole_way_and_every_field_is_as_documented(
    live, customer, built, tmp_path, make_wav
):
    (tmp_path / "a.wav").write_bytes(make_wav(61))
    (tmp_path / "a.txt").write_text("words that were said")
    working = asyncio.create_task(as_the_worker(live))
    walk = await asyncio.create_subprocess_exec(
        "node", str(built / "walk.js"), live.url, customer.key.secret, str(customer.id), str(live.base_id),
        str(tmp_path / "a.wav"), str(tmp_path / "a.txt"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(walk.communicate(), 60)
    assert walk.returncode == 0, err.decode()
    assert json.loads(out.decode().splitlines()[-1]) == {"done": True, "moves": [2, 3, 4], "versions": 1}
    await working


async def test_a_field_too_much_or_of_another_type_is_noticed(built, tmp_path):
    script = f"""
import {{ check }} from {json.dumps(str(built / "runtime.js"))};
const shapes = {{ A: {{ kind: "object", optional: ["b"], fields: {{ a: {{ kind: "integer" }}, b: {{ kind: "moment" }} }} }} }};
const wrong = (value) => {{ try {{ check(value, "A", shapes); return null; }} catch (error) {{ return error.message; }} }};
console.log(JSON.stringify([{{a: 1}}, {{a: 1, b: "2026-01-01T00:00:00+00:00"}}, {{a: "1"}}, {{}}, {{a: 1, c: 2}}, {{a: 1, b: "x"}}].map(wrong)));
"""
    (tmp_path / "wrong.mjs").write_text(script)
    node = await asyncio.create_subprocess_exec("node", str(tmp_path / "wrong.mjs"), stdout=asyncio.subprocess.PIPE)
    out, _ = await node.communicate()
    assert json.loads(out) == [
        None, None, 'A.a is "1", not integer', "A.a is missing", "A.c is not documented", 'A.b is "x", not moment',
    ]  # fmt: skip
