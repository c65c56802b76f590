"""The house rules that a machine can check."""

import ast
import re
import sys
from pathlib import Path

import pytest

from schemas.status import LEGAL_MOVES

ROOT = Path(__file__).parent.parent.parent

# Who may import whom: each room, and the rooms of ours it may use. A leaf is open to everybody.
LEAVES = {
    "worker.errors",
    "worker.clock",
    "worker.metrics",
    "worker.log",
    "worker",
    "worker.concurrency",
    "worker.tracing",
}
DOMAIN = {"worker.domain", "worker.data", "schemas", "sql"}
PLUMBING = {"worker.launchers", "worker.store", "worker.storage", "worker.broker", "worker.publisher"}
ALLOWED = {
    "schemas": {"schemas"},
    "worker.domain": {"worker.domain", "schemas", "sql"},
    "worker.data": {"worker.data", "worker.domain", "schemas"},
    "worker.launchers": {"worker.launchers", "worker.storage"} | DOMAIN,
    "worker.store": {"worker.store"} | DOMAIN,
    "worker.storage": {"worker.storage"} | DOMAIN,
    "worker.trainer": {"worker.trainer", "schemas"},
    "worker.pipeline": {"worker.pipeline"} | PLUMBING | DOMAIN,
    "worker.intake": {"worker.intake"} | PLUMBING | DOMAIN,
    "worker.services": {"worker.services", "worker.pipeline", "worker.intake"} | PLUMBING | DOMAIN,
    "worker.api": {"worker.api", "worker.pipeline", "worker.services"} | PLUMBING | DOMAIN,
}


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "worker" else parts[0]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def sources() -> list[Path]:
    return [*ROOT.glob("worker/**/*.py"), *ROOT.glob("schemas/**/*.py")]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_one_way(room):
    wrong = []
    for path in sources():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if room_of(module) != room:
            continue
        for name in imports_of(path):
            if name.split(".")[0] not in {"worker", "schemas", "sql"}:
                continue
            target = room_of(name)
            if target not in ALLOWED[room] and target not in LEAVES:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_only_the_store_imports_asyncpg():
    strangers = [str(path) for path in sources() if "asyncpg" in {name.split(".")[0] for name in imports_of(path)}]
    assert all("/worker/store/" in path for path in strangers)


def test_the_worker_never_imports_torch():
    heavy = {"torch", "transformers", "numpy", "soundfile", "av", "ctranslate2"}
    wrong = [
        str(path)
        for path in sources()
        if "worker/trainer" not in str(path) and heavy & {name.split(".")[0] for name in imports_of(path)}
    ]
    assert not wrong


def test_the_supervisor_needs_the_standard_library_only():
    names = {name.split(".")[0] for name in imports_of(ROOT / "worker/launchers/supervisor.py")}
    assert not names & {"schemas", "pydantic", "structlog", "torch"}


def test_the_child_that_reads_texts_needs_the_standard_library_only():
    """It starts in a moment, and what it can be made to do is little."""
    waiting, seen, foreign = ["worker.data.text_child"], set(), set()
    while waiting:
        module = waiting.pop()
        path = ROOT / f"{module.replace('.', '/')}.py"
        if module in seen or not path.exists():
            continue
        seen.add(module)
        for name in imports_of(path):
            if name.split(".")[0] in {"worker", "schemas"}:
                waiting.append(name)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                foreign.add(name)
    assert len(seen) > 5
    assert not foreign


def test_the_database_and_the_code_know_the_same_legal_moves():
    sql = (ROOT / "sql/migrations/0001_one_run.sql").read_text(encoding="utf-8")
    check = re.search(r"constraint legal_move check \((.*?)\n    \)\n", sql, re.DOTALL)
    assert check is not None
    moves = {(int(before), int(after)) for before, after in re.findall(r"\((\d), (\d)\)", check.group(1))}
    assert moves == {(int(before), int(after)) for before, after in LEGAL_MOVES if before is not None}


def test_no_room_has_a_name_that_says_nothing():
    empty = {"utils", "util", "common", "helpers", "helper", "manager", "base"}
    assert not [str(path) for path in sources() if path.stem in empty]
