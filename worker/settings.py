"""Every setting, in one place: read once from ``WORKER_…`` variables (secrets also from files), passed in as values.

``deploy/env.example`` is made from this file; a test compares them.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS_FOLDER = Path("/run/secrets")
_PAUSING_S: Final = 1.0
"""Within this a supervisor pauses its trainer, even one that somebody froze (``supervisor._WAKE_S``)."""


class Settings(BaseSettings):
    """The worker's settings. A secret named ``worker_database_url`` in ``/run/secrets`` is read from that file.

    An empty variable counts as none.
    """

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    amqp_url: SecretStr = Field(
        default=SecretStr("amqp://guest:guest@127.0.0.1:5672/"), description="RabbitMQ, amqp:// or amqps://"
    )
    database_url: SecretStr = Field(
        default=SecretStr("postgresql://127.0.0.1:5432/training"), description="Postgres 15 or newer"
    )
    storage_url: str = Field(
        default="file:///var/lib/speech-training", description="file:///folder or s3://bucket/prefix"
    )

    slots: int = Field(
        default=1, ge=0, le=1024, description="runs this worker trains at once; 0 only takes messages in"
    )
    launcher: Literal["local", "ray", "slurm", "noop"] = Field(default="local", description="where trainers run")
    trainer_python: str = Field(default=sys.executable, description="interpreter of the trainer's environment")
    trainer_module: str = Field(default="worker.trainer", description="module started for each step of a recipe")
    trainer_memory_bytes: int = Field(
        default=0, ge=0, description="most memory of a trainer and its children; 0: no limit"
    )
    trainer_threads: int = Field(default=0, ge=0, description="processor threads of a trainer; 0: all of the machine")
    trainer_processes: int = Field(
        default=1, ge=1, le=64, description="processes, each with a GPU or a share of the threads, that train one model"
    )
    trainer_isolation: Literal["required", "best_available", "none"] = Field(
        default="best_available",
        description="trainers reach their own files only, no network and no other process; required: no start "
        "without; best_available: what the kernel has; none: a trainer reaches whatever the worker's user reaches",
    )
    trainer_network: bool = Field(
        default=False, description="whether steps of recipes may use the network; the shipped recipe needs none"
    )
    trainer_readable: str = Field(
        default="", description="further files and folders that trainers may read and execute, separated by colons"
    )
    trainer_writable: str = Field(
        default="", description="further files and folders that all trainers may read and write, separated by colons"
    )
    devices: str = Field(
        default="",
        description="comma-separated devices of this host, one held by each step and by each process of a training; "
        "empty: not limited",
    )
    device_locks: Path = Field(
        default=Path("/tmp/speech-training-devices"), description="folder of the host's device locks"
    )
    scratch: Path = Field(default=Path("/tmp/speech-training"), description="working folder on this host; can be lost")
    cache: Path = Field(
        default=Path("/tmp/speech-training-cache"), description="downloads and base weights; can be lost"
    )

    umask: str = Field(
        default="077",
        pattern="^0?[0-7]{3}$",
        description="permission bits (octal) that no file or folder of ours gets, stored recordings included; "
        "027 lets the group read, 007 also write, where programs share storage under different users",
    )

    exchange_kind: Literal["folder", "storage"] = Field(
        default="folder",
        description="for ray and slurm, what workers and nodes share: folder is WORKER_EXCHANGE; storage is "
        "WORKER_STORAGE_URL alone, an s3:// one, which nodes reach by signed addresses",
    )
    exchange: Path | None = Field(
        default=None,
        description="for ray and slurm: a folder that workers and nodes see under the same path; "
        "scratch and cache must lie in it",
    )
    ray_address: str = Field(default="http://127.0.0.1:8265", description="Ray's dashboard, http:// or https://")
    ray_cpus: float = Field(default=1, ge=0, description="processors that a step asks of Ray")
    ray_gpus: float = Field(default=0, ge=0, description="GPUs that a step asks of Ray")
    ray_resources: dict[str, float] = Field(default={}, description="further resources asked of Ray, as JSON")
    ray_headers: SecretStr = Field(
        default=SecretStr(""), description="HTTP headers for Ray's dashboard as JSON, such as an authorization"
    )
    slurm_arguments: str = Field(
        default="", description="arguments of sbatch, such as --partition=gpu --gres=gpu:1 --time=1-0"
    )
    slurm_programs: Path | None = Field(
        default=None, description="folder of sbatch, squeue and scancel; unset: found on the PATH"
    )

    renew_s: float = Field(default=15, gt=0, description="how often leases are renewed")
    lease_s: float = Field(default=60, gt=0, description="how long a lease lasts without renewal")
    pause_s: float = Field(default=45, gt=0, description="a trainer whose lease was not renewed for so long is paused")
    patience_s: float = Field(default=600, gt=0, description="a paused trainer is killed after so long")
    sweep_s: float = Field(default=15, gt=0, description="how often dead leases are looked for")
    poll_s: float = Field(default=2, gt=0, description="how often a free slot looks for due runs without being rung")
    progress_s: float = Field(default=1, gt=0, description="how often progress is written at most")
    stall_s: float = Field(default=900, gt=0, description="a step without progress for so long is ended as stalled")
    grace_s: float = Field(default=120, gt=0, description="time for a hand-over at shutdown")
    failure_limit: int = Field(default=3, ge=1, description="failures a run may have in all")
    hand_over_limit: int = Field(
        default=50, ge=0, description="times a run may be handed over, or lose its worker as a likely cause, in all"
    )
    lost_worker_limit: int = Field(
        default=3,
        ge=1,
        description="a run is ended when it has lost so many workers in a row without getting further (phase and "
        "checkpoint) and no other run of theirs was as likely to be the cause",
    )
    wait_limit_s: float = Field(
        default=7 * 86_400,
        gt=0,
        description="longest wait in the queue or for a free device; back-off after a failure not counted",
    )
    run_limit_s: float = Field(default=86_400, gt=0, description="longest running time over all attempts")
    minimum_audio_s: float = Field(default=60, ge=0, description="least usable audio a run needs")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints an attempt keeps")

    frozen_limit_s: float = Field(
        default=60,
        ge=0,
        description="the worker ends itself, with its stack in the log, when its event loop has stood still for so "
        "long (and at least for a lease); time in which the process is stopped or gets no processor does not count; "
        "0: never",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level logged"
    )
    observe_host: str = Field(default="127.0.0.1", description="address of /metrics, /healthz and /readyz")
    observe_port: int = Field(default=9108, ge=0, le=65_535, description="their port; 0 picks a free one")
    traces_url: str = Field(
        default="", description="OTLP/HTTP address for traces, such as http://collector:4318/v1/traces; empty: none"
    )
    database_connections: int = Field(default=8, ge=2, description="database connections of a worker, heartbeat apart")

    s3_endpoint: str = Field(default="", description="S3 endpoint where it is not Amazon's")
    s3_region: str = Field(default="us-east-1", description="S3 region")
    s3_access_key: SecretStr = Field(
        default=SecretStr(""), description="S3 access key; empty: the platform's own credentials"
    )
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="S3 secret key")
    s3_session_token: SecretStr = Field(
        default=SecretStr(""), description="S3 session token of short-lived credentials"
    )
    s3_path_style: bool | None = Field(
        default=None, description="bucket in the path; unset: where an endpoint is given"
    )
    s3_ca_file: Path | None = Field(default=None, description="certificates (PEM) to trust for S3 beside the system's")
    storage_options: dict[str, str] = Field(
        default_factory=dict, description="further options of obstore's as JSON, for Google Cloud Storage and Azure"
    )
    cache_oldest_s: float = Field(
        default=7 * 86_400,
        gt=0,
        description="what was fetched from a remote storage and not used for so long, and at least for "
        "WORKER_RUN_LIMIT_S, is removed from this host",
    )
    tidy_s: float = Field(default=600, gt=0, description="how often spent artifacts and old scratch are removed")

    @model_validator(mode="after")
    def _trainers_pause_before_their_leases_end(self) -> Self:
        """A trainer that went on beyond its lease would act beside the next attempt of its run."""
        if not self.renew_s < self.pause_s <= self.lease_s - _PAUSING_S:
            raise ValueError(
                f"WORKER_RENEW_S={self.renew_s:g} must be less than WORKER_PAUSE_S={self.pause_s:g}, and that at least "
                f"{_PAUSING_S:g} s less than WORKER_LEASE_S={self.lease_s:g}: a trainer stands still before its run "
                "may begin elsewhere"
            )
        return self

    @model_validator(mode="after")
    def _nodes_see_the_files(self) -> Self:
        """Steps on other machines read and write where the worker told them to: say at start what they cannot see."""
        if self.launcher not in ("ray", "slurm"):
            return self
        self.ray_header_map()
        if self.exchange_kind == "storage":
            if not self.storage_url.startswith(("s3://", "s3a://")):
                raise ValueError(
                    "WORKER_EXCHANGE_KIND=storage needs a storage that signs addresses for the nodes, s3://…: "
                    f"WORKER_STORAGE_URL={self.storage_url} has none"
                )
            return self
        if self.exchange is None or not self.exchange.is_absolute():
            raise ValueError(f"WORKER_LAUNCHER={self.launcher} needs WORKER_EXCHANGE, a folder shared with its nodes")
        for name, folder in (("SCRATCH", self.scratch), ("CACHE", self.cache)):
            if not folder.is_relative_to(self.exchange):
                raise ValueError(
                    f"the nodes of {self.launcher} do not see WORKER_{name}={folder}: "
                    f"it must lie in WORKER_EXCHANGE={self.exchange}"
                )
        return self

    @model_validator(mode="after")
    def _devices_are_enough(self) -> Self:
        """A training that wants more devices than there are would wait for them for ever."""
        devices = self.device_list()
        enough = "cpu" in devices or len(devices) >= self.trainer_processes
        if self.launcher == "local" and devices and not enough:
            raise ValueError(
                f"WORKER_TRAINER_PROCESSES={self.trainer_processes} needs as many devices, "
                f"WORKER_DEVICES={self.devices} names {len(devices)}"
            )
        return self

    def ray_header_map(self) -> dict[str, str]:
        """The headers, by name.

        Raises:
            ValueError: they are no JSON object of texts.
        """
        try:
            found = json.loads(self.ray_headers.get_secret_value() or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError("WORKER_RAY_HEADERS is not a JSON object of texts")
        return found

    @property
    def mask(self) -> int:
        """The umask as a number."""
        return int(self.umask, 8)

    def slurm_argument_list(self) -> list[str]:
        """The arguments, one by one, as a shell would split them."""
        return shlex.split(self.slurm_arguments)

    def readable_list(self) -> list[Path]:
        """What trainers may read beside their own files, one by one."""
        return [Path(place) for place in self.trainer_readable.split(":") if place]

    def writable_list(self) -> list[Path]:
        """What trainers may write beside their own files, one by one."""
        return [Path(place) for place in self.trainer_writable.split(":") if place]

    def device_list(self) -> list[str]:
        """The devices, one by one."""
        return [device.strip() for device in self.devices.split(",") if device.strip()]


def read_settings() -> Settings:
    """Settings from the environment and, where it exists, the folder of secrets.

    Raises:
        pydantic.ValidationError: a value does not fit; names the field.
    """
    folder = SECRETS_FOLDER if SECRETS_FOLDER.is_dir() and os.access(SECRETS_FOLDER, os.R_OK | os.X_OK) else None
    return Settings(_secrets_dir=folder)
