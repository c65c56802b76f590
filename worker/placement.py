"""Which launcher the settings name."""

from pathlib import Path
from typing import Final

from worker.launchers.cluster import Cluster
from worker.launchers.exchange.folder import FolderExchanges
from worker.launchers.exchange.interface import Exchanges
from worker.launchers.exchange.storage import StorageExchanges
from worker.launchers.interface import Launcher
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.noop import NoopLauncher
from worker.launchers.ray import RayCluster, RayOptions
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.slurm import SlurmCluster, SlurmOptions
from worker.settings import Settings
from worker.storage import Storage

_BEAT_S: Final = {"folder": 1.0, "storage": 2.0}
"""Requests to an object storage are paid for one by one: each beat of a step is about eight."""
_SOURCE = str(Path(__file__).parent.parent)


def launcher_of(settings: Settings, storage: Storage) -> Launcher:
    """The launcher that the settings name.

    Args:
        settings: read once.
        storage: the worker's own; steps of a cluster that shares no folder with it talk through this.

    Raises:
        ValueError: the address of the cluster is none.
        IsolationUnavailable: trainers must be isolated, and this host cannot.
    """
    match settings.launcher:
        case "noop":
            return NoopLauncher()
        case "local":
            return _local(settings)
        case "ray":
            return _remote(settings, storage, _ray(settings))
        case "slurm":
            options = SlurmOptions(settings.slurm_argument_list(), settings.slurm_programs)
            return _remote(settings, storage, SlurmCluster(options))


def _local(settings: Settings) -> LocalLauncher:
    return LocalLauncher(
        LocalOptions(
            command=(settings.trainer_python, "-m", settings.trainer_module),
            scratch_root=settings.scratch / "steps",
            patience_s=settings.patience_s,
            memory_limit_bytes=settings.trainer_memory_bytes,
            threads=settings.trainer_threads or None,
            processes=settings.trainer_processes,
            devices=settings.device_list(),
            device_locks=settings.device_locks,
            added_environment={"PYTHONPATH": _SOURCE},
            isolation=settings.trainer_isolation,
            network=settings.trainer_network,
            readable=settings.readable_list(),
            writable=settings.writable_list(),
        )
    )


def _ray(settings: Settings) -> RayCluster:
    return RayCluster(
        RayOptions(
            address=settings.ray_address,
            cpus=settings.ray_cpus,
            gpus=settings.ray_gpus,
            resources=settings.ray_resources,
            headers=settings.ray_header_map(),
        )
    )


def _exchanges(settings: Settings, storage: Storage) -> Exchanges:
    if settings.exchange_kind == "storage":
        return StorageExchanges(storage, settings.scratch / "logs")
    assert settings.exchange is not None, "the settings were checked"
    # a room of its own: whatever lies there for a week without a change is removed
    return FolderExchanges(settings.exchange / "steps")


def _remote(settings: Settings, storage: Storage, cluster: Cluster) -> RemoteLauncher:
    return RemoteLauncher(
        cluster,
        _exchanges(settings, storage),
        RemoteOptions(
            command=(settings.trainer_python, "-m", settings.trainer_module),
            beat_s=_BEAT_S[settings.exchange_kind],
            outpost=(
                "env",
                f"PYTHONPATH={_SOURCE}",
                settings.trainer_python,
                "-m",
                "worker.launchers.outpost",
            ),
            patience_s=settings.patience_s,
            memory_limit_bytes=settings.trainer_memory_bytes,
            threads=settings.trainer_threads or None,
            processes=settings.trainer_processes,
            added_environment={"PYTHONPATH": _SOURCE},
            isolation=settings.trainer_isolation,
            network=settings.trainer_network,
            readable=settings.readable_list(),
            writable=settings.writable_list(),
        ),
    )
