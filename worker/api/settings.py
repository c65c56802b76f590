"""The API's own settings; those it shares with the worker have the same names, so that one environment serves both."""

import os
import tempfile
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.api.networks import Network, parse_nameservers, parse_networks, parse_proxy
from worker.encryption import parse_keys

SECRETS_FOLDER = Path("/run/secrets")


class ApiSettings(BaseSettings):
    """What `python -m worker api` reads from ``WORKER_…`` variables."""

    model_config = SettingsConfigDict(env_prefix="WORKER_", frozen=True, extra="ignore", hide_input_in_errors=True)

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
    api_frozen_limit_s: float = Field(
        default=30,
        ge=0,
        description="an API process ends itself, with its stack in the log, when its event loop has stood still for so "
        "long; time in which the process is stopped or gets no processor does not count; 0: never",
    )
    api_database_connections: int = Field(
        default=8,
        ge=2,
        description="database connections of an API process for requests; an organization gets at most half of them",
    )
    api_statement_timeout_s: float = Field(
        default=5,
        ge=0.1,
        le=600,
        description="longest statement, wait for a lock, and silence inside a transaction, of a request; then 503",
    )
    api_connections: int = Field(
        default=4_096,
        ge=16,
        description="connections one API process keeps open; fewer where its limit of open files is lower",
    )
    api_connections_per_address: int = Field(
        default=512,
        ge=1,
        description="connections from one address, at most half of all; behind trusted proxies: requests at once",
    )
    api_trusted_proxies: str = Field(
        default="",
        description="comma-separated addresses and networks of the reverse proxies whose X-Forwarded-For and "
        "X-Request-Id are believed; empty: nobody's",
    )
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
    api_upload_bytes: int = Field(
        default=15 << 30,
        ge=1,
        description="bytes of unfinished uploads one API process keeps in that folder; an organization gets a third",
    )
    api_least_upload_bytes_per_s: int = Field(
        default=4_096,
        ge=0,
        description="slowest sender of an upload, over a minute; a slower one is told 408 and sends again",
    )
    api_longest_upload_s: float = Field(default=6 * 3600, gt=0, description="longest that one request may send a body")
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
        description="requests a day with which an organization makes or changes something, likewise; deleting is free, "
        "a refusal that is kept for its Idempotency-Key counts",
    )
    api_quota_waiting: int = Field(default=1_000, ge=0, description="runs an organization may have waiting, likewise")
    api_webhook_private: bool = Field(
        default=False,
        description="webhooks may go to http and to private addresses: for tests and closed networks only",
    )

    api_webhook_refused_networks: str = Field(
        default="",
        description="networks that webhooks never go to, beside all internal and special ones, such as 192.0.2.0/24, "
        "separated by commas",
    )
    api_webhook_proxy: SecretStr = Field(
        default=SecretStr(""),
        description="http://[user:password@]host:port of a proxy that opens the connections of webhooks by CONNECT, to "
        "the address that was checked here; empty: none",
    )
    api_webhook_nameservers: str = Field(
        default="",
        description="name servers for the hosts of webhooks, as address or address:port, separated by commas; empty: "
        "the system's",
    )
    api_encryption_keys: SecretStr = Field(
        default=SecretStr(""),
        description="keys that encrypt the secrets of webhooks, each base64 of 32 bytes (openssl rand -base64 32), the "
        "newest first, separated by commas; empty: no webhook can be made",
    )

    @field_validator("api_encryption_keys")
    @classmethod
    def _keys_are_keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("api_trusted_proxies", "api_webhook_refused_networks")
    @classmethod
    def _networks_are_networks(cls, value: str) -> str:
        parse_networks(value)
        return value

    @field_validator("api_webhook_proxy")
    @classmethod
    def _proxy_is_a_proxy(cls, value: SecretStr) -> SecretStr:
        parse_proxy(value.get_secret_value())
        return value

    @field_validator("api_webhook_nameservers")
    @classmethod
    def _nameservers_are_addresses(cls, value: str) -> str:
        parse_nameservers(value)
        return value

    @cached_property
    def encryption_keys(self) -> tuple[bytes, ...]:
        """The encryption keys, the newest first."""
        return parse_keys(self.api_encryption_keys.get_secret_value())

    api_wrong_keys_per_s: float = Field(
        default=1,
        gt=0,
        description="wrong keys a second that one address (of IPv6: one /64) may send to an API process, lasting; "
        "valid keys from there are never refused for them",
    )
    api_wrong_keys_burst: int = Field(
        default=30, ge=1, description="wrong keys an address may send at once before that rate counts"
    )
    api_log_reads: bool = Field(
        default=False,
        description="a log line for every successful read, too; without it they are counted only, but for logs, "
        "reports and the audit trail",
    )
    api_metrics_host: str = Field(
        default="127.0.0.1", description="address of the API's own metrics, /healthz and /readyz"
    )
    api_metrics_port: int = Field(
        default=9109, ge=0, le=65_535, description="their port, never the one that customers reach; 0: none"
    )
    api_audit_days: int = Field(default=400, ge=30, description="days that entries of the audit trail are kept")

    @cached_property
    def origins(self) -> list[str]:
        """The allowed browser origins, one by one."""
        return _listed(self.api_allowed_origins)

    @cached_property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """The networks of reverse proxies, one by one."""
        return parse_networks(self.api_trusted_proxies)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_api_settings() -> ApiSettings:
    """Settings from the environment and, where it exists, the folder of secrets.

    Raises:
        pydantic.ValidationError: a value does not fit; names the field.
    """
    folder = SECRETS_FOLDER if SECRETS_FOLDER.is_dir() and os.access(SECRETS_FOLDER, os.R_OK | os.X_OK) else None
    return ApiSettings(_secrets_dir=folder)
