"""Chooses the benchmark, and starts private services for it where none are named."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from deploy.local.services import LocalServices

NAMES = ("AMQP", "MANAGEMENT", "DATABASE")


def main() -> None:
    """`polling`, `orchestration`, `scale` or `memory`, with the benchmark's own arguments behind it."""
    chosen = importlib.import_module(f"tests.bench.{sys.argv.pop(1)}")
    if all(os.environ.get(f"TEST_{name}_URL") for name in NAMES):
        chosen.main()
        return
    with tempfile.TemporaryDirectory(prefix="speech-bench-") as folder:
        Path(folder).chmod(0o711)  # where Postgres must run as another user, that user has to reach its folder
        own = LocalServices(Path(folder))
        addresses = own.start()
        for name in NAMES:
            os.environ[f"TEST_{name}_URL"] = str(getattr(addresses, f"{name.lower()}_url"))
        try:
            chosen.main()
        finally:
            own.stop()
            own.postgres.remove()


if __name__ == "__main__":
    main()
