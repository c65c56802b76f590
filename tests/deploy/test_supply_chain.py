"""What is installed is what was locked, file by file; and a scan that could not look says so."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement

from deploy.local import supply_chain
from deploy.local.lock import LOCK, PROJECT, without_torch
from deploy.local.locked import build_requirements, entry
from deploy.local.venv import TORCH

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK.read_text())[1:]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *words, "--no-index", "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_every_locked_package_has_hashes() -> None:
    assert len(ENTRIES) > 100
    without = [text.splitlines()[0] for text in ENTRIES if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", text)]
    assert not without


def test_every_package_that_pyproject_asks_for_is_locked_in_a_version_that_fits() -> None:
    """Red after a new dependency until `python -m deploy.local.lock` has run."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    locked: dict[str, list[str]] = {}
    for text in ENTRIES:
        name, version = re.match(r"([^=\s]+)==([^\s;\\]+)", text).groups()  # type: ignore[union-attr]
        locked.setdefault(normal(name), []).append(version)
    for line in (*project["dependencies"], *extras, *build_requirements(PROJECT)):
        wanted = Requirement(line)
        if wanted.name == "torch":
            assert wanted.specifier.contains(TORCH)
            continue
        versions = locked.get(normal(wanted.name), [])
        assert any(wanted.specifier.contains(version) for version in versions), f"{line} is locked as {versions}"


def test_image_has_the_torch_that_was_tested() -> None:
    text = Path("deploy/images/Dockerfile").read_text()
    assert re.findall(r"^ARG TORCH=(.+)$", text, re.MULTILINE) == [TORCH]
    assert "torch>=" not in text


def test_lock_leaves_out_what_depends_on_the_machine_and_nothing_else() -> None:
    text = "a==1 \\\n    --hash=sha256:00\ntorch==2.13.0 \\\n    --hash=sha256:11\nnvidia-nccl-cu13==2 \\\n    --hash=sha256:22\ntorchless==1 \\\n    --hash=sha256:33\n"
    assert re.findall(r"(?m)^\w[^=]*", without_torch(text)) == ["a", "torchless"]


def wheel_of(folder: Path, name: str) -> Path:
    """The smallest wheel that pip installs."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        digest = base64.urlsafe_b64encode(hashlib.sha256(b"").digest()).rstrip(b"=").decode()
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,sha256={digest},0\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


def test_file_whose_hash_is_not_locked_is_refused(tmp_path: Path) -> None:
    """What the set-up relies on: pip looks at hashes in constraints, for packages that were asked for by a range."""
    wheel = wheel_of(tmp_path, "lockedthing")
    good = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = tmp_path / "constraints.txt"
    asked = (
        "install",
        "--dry-run",
        "--require-hashes",
        "--constraint",
        str(lock),
        "--find-links",
        str(tmp_path),
        "lockedthing>=0.5",
    )
    lock.write_text(f"lockedthing==1.0 \\\n    --hash=sha256:{good}\n")
    assert "Would install lockedthing-1.0" in pip(*asked).stdout
    lock.write_text(f"lockedthing==1.0 \\\n    --hash=sha256:{good[::-1]}\n")
    refused = pip(*asked)
    assert refused.returncode != 0
    assert "sha256" in refused.stderr


def test_entry_of_one_package_has_all_its_hashes() -> None:
    text = entry(LOCK, "pip")
    assert text.startswith("pip==")
    assert text.count("--hash=sha256:") >= 2
    with pytest.raises(KeyError, match="nosuchthing"):
        entry(LOCK, "nosuchthing")


def test_threat_model_names_tests_and_attacks_that_exist() -> None:
    text = Path("deploy/threat-model.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 4][1:]
    assert len(rows) >= 10
    kinds = "".join(path.read_text() for path in Path("tests/attack/kinds").glob("*.py"))
    for row in rows:
        proofs = re.findall(r"`([\w/.]+)`", row.split("|")[3])
        assert proofs, row
        for proof in proofs:
            known = Path(proof).exists() or f"def {proof}(" in kinds or proof == "unlogged"
            assert known, f"{proof} does not exist"


# --- with pip-audit and cyclonedx-bom ---------------------------------------------------------------------------


@contextmanager
def osv(known: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """An OSV service that knows these packages' vulnerabilities."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = known.get(asked["package"]["name"], [])
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


ADVISORY = {
    "id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "summary": "s", "details": "d", "published": "2026-01-01T00:00:00Z",
    "affected": [{"package": {"name": "idna", "ecosystem": "PyPI"}, "versions": ["3.20"],
                  "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "4.0"}]}]}],
}  # fmt: skip


@pytest.mark.supply_chain
def test_known_vulnerability_fails_the_scan_and_is_named() -> None:
    with osv({"idna": [ADVISORY]}) as url:
        found = supply_chain.scanned(["idna==3.20", "h11==0.16.0"], url)
    assert found.code == supply_chain.VULNERABLE
    assert found.vulnerable == ["idna 3.20: PYSEC-2026-1, CVE-2026-1 (mended in 4.0)"]


@pytest.mark.supply_chain
def test_scan_that_finds_nothing_has_looked_up_every_package_in_every_locked_version() -> None:
    with osv({}) as url:
        found = supply_chain.scanned(["networkx==3.6.1", "networkx==3.7", "h11==0.16.0"], url)
    assert (found.code, found.scanned, found.unknown) == (supply_chain.CLEAN, 3, {})


@pytest.mark.supply_chain
def test_database_that_does_not_answer_is_no_clean_scan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPEECH_WORKER_OSV_URL", "http://127.0.0.1:9/v1/query")
    assert supply_chain.scan() == supply_chain.NOT_SCANNED
    assert "NOT SCANNED" in capsys.readouterr().out


@pytest.mark.supply_chain
def test_list_of_components_names_what_is_installed(tmp_path: Path) -> None:
    assert supply_chain.sbom(tmp_path / "sbom.json") > 50
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert (made["bomFormat"], made["metadata"]["component"]["name"]) == ("CycloneDX", "speech-training-worker")
    assert {"asyncpg", "pydantic", "structlog"} <= {one["name"] for one in made["components"]}
    assert all(one["purl"].startswith("pkg:pypi/") for one in made["components"])
