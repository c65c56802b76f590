"""The API's own settings; those it shares with the worker have the same names, so that one environment serves both."""

import os
import tempfile
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS_FOLDER = Path("/run/secrets")


class ApiSettings(BaseSettings):
    """What `python -m worker api` reads from ``WORKER_…`` variables."""

    model_config = SettingsConfigDict(env_prefix="WORKER_", frozen=True, extra="ignore")

    database_url: SecretStr = Field(
        default=SecretStr("postgresql://127.0.0.1:5432/training"), description="Postgres 15 or newer"
    )
    minimum_audio_s: float = Field(default=60, ge=0, description="least usable audio a run needs")
    wait_limit_s: float = Field(
        default=7 * 86_400,
        gt=0,
        description="longest wait in the queue or for a free device; back-off after a failure not counted",
    )

    traces_url: str = Field(
        default="", description="OTLP/HTTP address for traces, such as http://collector:4318/v1/traces; empty: none"
    )

    api_host: str = Field(default="127.0.0.1", description="address the API listens on")
    api_port: int = Field(default=8080, ge=0, le=65_535, description="its port; 0 picks a free one")
    api_database_connections: int = Field(default=8, ge=2, description="database connections of an API process")
    api_allowed_origins: str = Field(
        default="",
        description="comma-separated browser origins that may call the API; * for any; empty: its own console only",
    )
    api_rate_per_s: float = Field(
        default=50, gt=0, description="requests a second each key may make of one API process, lasting"
    )
    api_burst: int = Field(default=200, ge=1, description="requests a key may make at once before that rate counts")
    api_upload_folder: Path = Field(
        default=Path(tempfile.gettempdir()) / "speech-training-uploads",
        description="where uploads lie until they are checked",
    )
    api_uploads_at_once: int = Field(
        default=16,
        ge=1,
        description="uploads one API process takes at the same time; an organization gets at most half of them",
    )
    api_largest_file_bytes: int = Field(default=2 << 30, ge=1, description="largest file of training data")
    api_largest_request_bytes: int = Field(
        default=4 << 30, ge=1, description="largest upload request, all its files together"
    )
    api_most_files: int = Field(default=1_000, ge=1, description="most files in one upload request")
    api_longest_audio_s: float = Field(default=6 * 3600, gt=0, description="longest recording of training data")
    api_quota_models: int = Field(
        default=100_000, ge=0, description="models an organization may have, unless it has a quota"
    )
    api_quota_stored_hours: float = Field(
        default=10_000, ge=0, description="hours of audio an organization may store, likewise"
    )
    api_quota_stored_bytes: int = Field(
        default=8 << 40,
        ge=0,
        description="bytes of training data an organization may store, unfinished uploads included, likewise",
    )
    api_quota_files: int = Field(
        default=2_000_000, ge=0, description="files of training data an organization may store, likewise"
    )
    api_quota_uploads: int = Field(
        default=1_000, ge=0, description="unfinished uploads an organization may have, likewise"
    )
    api_quota_manifest_names: int = Field(
        default=2_000_000, ge=0, description="recordings that all manifests of an organization may name, likewise"
    )
    api_quota_changes: int = Field(
        default=100_000,
        ge=0,
        description="requests a day with which an organization makes or changes something, likewise; deleting is free",
    )
    api_quota_waiting: int = Field(default=1_000, ge=0, description="runs an organization may have waiting, likewise")
    api_webhook_private: bool = Field(
        default=False,
        description="webhooks may go to http and to private addresses: for tests and closed networks only",
    )

    @cached_property
    def origins(self) -> list[str]:
        """The allowed browser origins, one by one."""
        return [origin.strip() for origin in self.api_allowed_origins.split(",") if origin.strip()]


def read_api_settings() -> ApiSettings:
    """Settings from the environment and, where it exists, the folder of secrets.

    Raises:
        pydantic.ValidationError: a value does not fit; names the field.
    """
    folder = SECRETS_FOLDER if SECRETS_FOLDER.is_dir() and os.access(SECRETS_FOLDER, os.R_OK | os.X_OK) else None
    return ApiSettings(_secrets_dir=folder)
