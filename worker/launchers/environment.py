"""The environment a trainer sees: an allow-list, so that a credential cannot slip in by being new."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from schemas.steps import ATTEMPT_MARK, StepSpec

_PASSED: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",  # CUDA's libraries on machines that need it
    "NVIDIA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
)
"""Names taken over from the worker's own environment."""


def trainer_environment(
    spec: StepSpec,
    scratch: Path,
    *,
    added: Mapping[str, str],
    device: str | None,
    threads: int | None,
) -> dict[str, str]:
    """All that a step's process gets to see.

    Args:
        spec: the step; only its mark (run and attempt) comes from it.
        scratch: the step's private folder: home, temporary files and working directory.
        added: what the operator adds on purpose, for instance PYTHONPATH.
        device: the CUDA device to show; ``cpu`` hides them all; None leaves the choice to the program.
        threads: processor threads for numerical libraries; None leaves it to them.
    """
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment |= {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    return environment | dict(added) | {ATTEMPT_MARK: f"{spec.run_id}:{spec.attempt}"}
