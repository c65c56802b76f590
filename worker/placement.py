"""Which launcher the settings name."""

from pathlib import Path

from worker.launchers.cluster import Cluster
from worker.launchers.interface import Launcher
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.noop import NoopLauncher
from worker.launchers.ray import RayCluster, RayOptions
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.slurm import SlurmCluster, SlurmOptions
from worker.settings import Settings

_SOURCE = str(Path(__file__).parent.parent)


def launcher_of(settings: Settings) -> Launcher:
    """The launcher that the settings name.

    Raises:
        ValueError: the address of the cluster is none.
    """
    match settings.launcher:
        case "noop":
            return NoopLauncher()
        case "local":
            return _local(settings)
        case "ray":
            return _remote(settings, _ray(settings))
        case "slurm":
            options = SlurmOptions(settings.slurm_argument_list(), settings.slurm_programs)
            return _remote(settings, SlurmCluster(options))


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


def _remote(settings: Settings, cluster: Cluster) -> RemoteLauncher:
    assert settings.exchange is not None, "the settings were checked"
    return RemoteLauncher(
        cluster,
        RemoteOptions(
            command=(settings.trainer_python, "-m", settings.trainer_module),
            # a room of its own: whatever lies there for a week without a change is removed
            exchange_root=settings.exchange / "steps",
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
        ),
    )
