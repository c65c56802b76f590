"""The environment a trainer sees: an allow-list, so that a credential cannot slip in by being new."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from schemas.steps import ATTEMPT_MARK, PROCESSES, StepSpec

CPU: Final = "cpu"
"""The device that stands for having none."""
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


def private_environment(scratch: Path) -> dict[str, str]:
    """All of ours that a program sees which decodes what strangers recorded.

    Args:
        scratch: its private folder: home and temporary files, so that nothing in our own home is found by its name.
    """
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return environment | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # or a torch.py in the working directory would be imported for the library
    }


def trainer_environment(  # noqa: PLR0913 - everything that decides it
    spec: StepSpec,
    scratch: Path,
    *,
    added: Mapping[str, str],
    devices: Sequence[str],
    threads: int | None,
    processes: int = 1,
) -> dict[str, str]:
    """All that a step's process gets to see.

    Args:
        spec: the step; only its mark (run and attempt) comes from it.
        scratch: the step's private folder: home, temporary files and working directory.
        added: what the operator adds on purpose, for instance PYTHONPATH.
        devices: the CUDA devices to show; ``cpu`` hides them all; none leaves the choice to the program.
        threads: processor threads for numerical libraries; None leaves it to them.
        processes: how many the step may spread over.
    """
    environment = private_environment(scratch)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if processes > 1:
        environment[PROCESSES] = str(processes)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(name for name in devices if name != CPU)
    return environment | dict(added) | {ATTEMPT_MARK: f"{spec.run_id}:{spec.attempt}"}
