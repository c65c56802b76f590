"""From our options to an obstore store."""

from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from obstore import exceptions as foreign
from obstore.store import from_url

from worker.storage.interface import StorageOptions
from worker.storage.patience import in_our_words

_REQUEST_S: Final = 30
_SILENCE_S: Final = 15
_CONNECT_S: Final = 5


def connected(url: str, options: StorageOptions, *, retries: int) -> Any:
    """Obstore's store for an address; nothing is asked of the server yet.

    Args:
        url: ``s3://…``, ``gs://…`` or ``az://…``.
        options: how to reach it.
        retries: of single requests, inside obstore.

    Raises:
        StorageRefused: an option that this kind of storage does not have.
    """
    try:
        return from_url(
            url,
            config=_config(url, options),
            client_options=_client(options),
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=10)},
        )
    except foreign.BaseError as error:
        raise in_our_words(error) from error


def _client(options: StorageOptions) -> Any:
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "read_timeout": timedelta(seconds=_SILENCE_S),
        "timeout": timedelta(seconds=_REQUEST_S),
        "allow_http": (options.endpoint or "").startswith("http://"),
    }
    if options.ca_file is not None:
        client["root_certificate"] = options.ca_file.read_bytes()
    return client


def _config(url: str, options: StorageOptions) -> Any:
    """Options by obstore's names; those of S3 only where it is S3."""
    config: dict[str, Any] = dict(options.extra)
    where = urlsplit(url)
    if where.scheme not in {"s3", "s3a"}:
        return config
    endpoint = options.endpoint
    path_style = bool(endpoint) if options.path_style is None else options.path_style
    if endpoint and not path_style:
        server = urlsplit(endpoint)
        endpoint = server._replace(netloc=f"{where.netloc}.{server.netloc}").geturl()
    named = {
        "endpoint": endpoint,
        "region": options.region,
        "access_key_id": options.access_key_id,
        "secret_access_key": options.secret_access_key,
        "session_token": options.session_token,
        "virtual_hosted_style_request": not path_style,
    }
    return config | {name: value for name, value in named.items() if value is not None}
