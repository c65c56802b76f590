"""What the pipeline works with, given once."""

from dataclasses import dataclass

from worker.clock import Clock
from worker.launchers.interface import Launcher
from worker.metrics import Metrics
from worker.storage import Storage
from worker.store.data import DataStore
from worker.store.models import ModelStore
from worker.store.runs import RunStore
from worker.tracing import OFF, Tracing


@dataclass(frozen=True)
class Timing:
    """Limits of an attempt, in seconds."""

    lease_s: float
    pause_s: float
    stall_s: float
    run_limit_s: float


@dataclass(frozen=True)
class Parts:
    """Everything a phase may use."""

    runs: RunStore
    models: ModelStore
    data: DataStore
    storage: Storage
    launcher: Launcher
    metrics: Metrics
    clock: Clock
    timing: Timing
    minimum_audio_s: float
    keep_checkpoints: int
    tracing: Tracing = OFF
