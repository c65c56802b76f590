"""What a model was made with: the same build, processor and thread count give the same bytes again."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def build_facts(device: torch.device) -> dict[str, Any]:
    """Versions, processor and threads, for model cards."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "transformers": version("transformers"),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
