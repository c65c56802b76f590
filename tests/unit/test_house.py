"""House rules that a machine can check; who may import whom is in pyproject.toml, for lint-imports."""

import ast
import re
import sys
from pathlib import Path

from schemas.status import LEGAL_MOVES

ROOT = Path(__file__).parent.parent.parent


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


def test_every_room_stands_in_the_page_for_contributors_and_what_the_page_names_is_there():
    page = (ROOT / "worker/README.md").read_text(encoding="utf-8")
    rooms = re.search(r"^## Rooms$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    assert rooms is not None
    listed = {
        name.rstrip("/")
        for cells in re.findall(r"^\| (`.+?) \|", rooms[1], re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cells)
    }
    there = {
        path.name for path in (ROOT / "worker").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__.py", "__main__.py"} == listed
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.py)`", page):
        assert (ROOT / name).exists() or (ROOT / "worker" / name).exists(), name
    for target in re.findall(r"\]\(([^)#]+)", page):
        assert (ROOT / "worker" / target).exists(), target
