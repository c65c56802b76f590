"""What this product is made of, and what is known to be wrong with it.

    python -m deploy.local.supply_chain sbom FILE       components of this environment, CycloneDX 1.6 as JSON
    python -m deploy.local.supply_chain scan            known vulnerabilities of every locked package

Both need the extra ``supply-chain``. The scan asks PyPI's vulnerability data, or an OSV service that
SPEECH_WORKER_OSV_URL names (a mirror, where nothing else can be reached). Its exit code is 0 when every package was
looked up and nothing is known, 1 when something is, and 3 when the database could not be asked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.lock import LOCK, PROJECT
from deploy.local.venv import TORCH

CLEAN: Final = 0
VULNERABLE: Final = 1
NOT_SCANNED: Final = 3
ACCEPTED: Final[dict[str, str]] = {}
"""Ids of advisories that do not concern us, with the reason; they are named in the scan's output."""
_PATIENCE_S: Final = 900


@dataclass(frozen=True)
class Scan:
    """What a scan found out.

    Attributes:
        scanned: packages that the database was asked about.
        unknown: packages that it was not, with the reason.
        vulnerable: a sentence for each known vulnerability.
    """

    scanned: int
    unknown: dict[str, str]
    vulnerable: list[str]

    @property
    def code(self) -> int:
        """The exit code."""
        if self.vulnerable:
            return VULNERABLE
        return NOT_SCANNED if self.unknown or not self.scanned else CLEAN


def sbom(out: Path) -> int:
    """Write the components of this environment; how many there are.

    Raises:
        RuntimeError: cyclonedx-py could not; the message holds its own words.
    """
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        str(PROJECT),
        "--spec-version",
        "1.6",
    ]
    command += [
        "--output-reproducible",
        "--output-format",
        "JSON",
        "--output-file",
        str(out),
        "--validate",
        sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return len(json.loads(out.read_text())["components"])


def locked_packages(lock: str) -> list[str]:
    """Every ``name==version`` of the lock, and PyTorch, which is pinned elsewhere."""
    return [*dict.fromkeys(re.findall(r"(?m)^[A-Za-z0-9][^\s;\\]*==[^\s;\\]+", lock)), f"torch=={TORCH}"]


def scanned(packages: list[str], osv_url: str | None) -> Scan:
    """Ask about packages.

    Where the database does not answer, pip-audit skips packages and exits with 0; here they count as not looked up.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        asked = Path(folder) / "packages.txt"
        by_name: dict[str, list[str]] = {}
        for package in packages:
            by_name.setdefault(package.partition("==")[0], []).append(package)
        # Two versions of one package (for two Pythons) are no valid requirements file: each gets a file of its own.
        results = [
            _audited([found[n] for found in by_name.values() if n < len(found)], asked, report, osv_url)
            for n in range(max(len(found) for found in by_name.values()))
        ]
    return Scan(
        sum(one.scanned for one in results),
        {name: why for one in results for name, why in one.unknown.items()},
        [sentence for one in results for sentence in one.vulnerable],
    )


def _audited(packages: list[str], asked: Path, report: Path, osv_url: str | None) -> Scan:
    asked.write_text("\n".join(packages) + "\n")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(asked), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--output", str(report), "--progress-spinner", "off", "--desc", "off"]
    command += ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if not report.exists():
        last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return Scan(0, dict.fromkeys(packages, last[:300]), [])
    found = json.loads(report.read_text())["dependencies"]
    unknown = {one["name"]: one["skip_reason"] for one in found if "skip_reason" in one}
    return Scan(len(found) - len(unknown), unknown, [line for one in found for line in _sentences(one)])


def _sentences(package: dict[str, Any]) -> list[str]:
    """Each vulnerability of a package that is not accepted."""
    found = []
    for known in package.get("vulns", []):
        names = [known["id"], *known.get("aliases", [])]
        if not any(name in ACCEPTED for name in names):
            mended = ", ".join(known.get("fix_versions", [])) or "no release"
            found.append(f"{package['name']} {package['version']}: {', '.join(names)} (mended in {mended})")
    return found


def scan() -> int:
    """Scan the lock and say what came of it; the exit code."""
    packages = locked_packages(LOCK.read_text())
    osv_url = os.environ.get("SPEECH_WORKER_OSV_URL")
    first = scanned(packages[:1], osv_url)  # one question first: a database that is away is asked no 200
    found = first if not first.scanned else scanned(packages, osv_url)
    for name, reason in ACCEPTED.items():
        print(f"accepted: {name}: {reason}")
    for sentence in found.vulnerable:
        print(f"VULNERABLE: {sentence}")
    if found.unknown:
        name, reason = next(iter(found.unknown.items()))
        left = len(packages) - found.scanned
        behind = f"{left} of {len(packages)} packages ({name}: {reason})"
        print(f"NOT SCANNED: the vulnerability database did not answer for {behind}")
        print("What to do: run it where PyPI's data can be reached, or name an OSV service: SPEECH_WORKER_OSV_URL.")
    elif not found.vulnerable:
        print(f"{found.scanned} packages were looked up, and nothing is known against them")
    return found.code


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sbom").add_argument("file", type=Path)
    commands.add_parser("scan")
    options = parser.parse_args()
    if options.command == "scan":
        return scan()
    print(f"{sbom(options.file)} components in {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
