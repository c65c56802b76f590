"""A running API per test: real HTTP over a socket, a fresh database, files as storage."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from worker.api import keys
from worker.api.app import create_app
from worker.api.serving import server_config
from worker.api.settings import ApiSettings
from worker.api.tidy import Tidying
from worker.storage import FileStorage
from worker.store.api_keys import KeyStore
from worker.store.database import Database
from worker.store.models import ModelStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import Logins
    from worker.api.connections import Patience

PREFIX = "/api/v3"
ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()


def wav(seconds: float, rate: int = 8_000) -> bytes:
    """Quiet noise as a wav file."""
    data = bytes(range(256)) * (int(seconds * rate * 2) // 256 + 1)
    data = data[: int(seconds * rate) * 2]
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@dataclass
class Live:
    """A served API and what a test needs around it."""

    url: str
    settings: ApiSettings
    owner_url: str
    """The database for whoever owns it, as operators' commands have it; the API's own login is in `settings`."""
    database: Database
    keys: KeyStore
    storage: FileStorage
    base_id: int
    app: Any
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    async def organization(self, name: str) -> int:
        return await ModelStore(self.database).create_organization(None, name)

    async def key(self, organization_id: int | None, role: str = "owner") -> keys.NewKey:
        return await keys.create(self.keys, organization_id, role, "test")  # type: ignore[arg-type]

    def client(self, secret: str | None) -> httpx.AsyncClient:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        made = httpx.AsyncClient(base_url=self.url + PREFIX, headers=headers, timeout=30, trust_env=False)
        self.clients.append(made)
        return made


@dataclass
class Customer:
    """An organization with an owner's key."""

    id: int
    key: keys.NewKey
    http: httpx.AsyncClient
    base_id: int

    async def model(self, name: str = "Clinic") -> dict[str, Any]:
        body = {"name": name, "language_id": self.base_id, "organization_id": self.id}
        answer = await self.http.post("/custom_models", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def feed(self, model_id: int, seconds: float = 61, name: str = "speech") -> dict[str, Any]:
        files = [
            ("file", (f"{name}.wav", wav(seconds))),
            ("file", (f"{name}.txt", b"some words that were said")),
        ]
        answer = await self.http.post(f"/custom_models/{model_id}/data", files=files)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def trainable_model(self) -> dict[str, Any]:
        model = await self.model()
        await self.feed(model["id"])
        return model


@contextlib.asynccontextmanager
async def serving(
    settings: ApiSettings, storage: FileStorage, patience: Patience | None = None
) -> AsyncIterator[tuple[str, Any]]:
    app = create_app(settings, storage)
    listener = socket.create_server(("127.0.0.1", 0))
    config = server_config(app, patience)
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    running = asyncio.create_task(server.serve([listener]))
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        server.should_exit = True
        await running
        listener.close()


@pytest.fixture
def api_settings() -> dict[str, Any]:
    """Overridden by tests that need other settings."""
    return {}


@pytest.fixture
def housekeeping_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API under test leaves its housekeeping to the test, which would otherwise race it."""

    async def never(_: Tidying) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Tidying, "run", never)


@pytest.fixture
def patience() -> Patience | None:
    """With connections; overridden by tests that wait for its end."""
    return None


@pytest.fixture
async def live(
    database_url: str, logins: Logins, tmp_path: Path, api_settings: dict[str, Any], patience: Patience | None
) -> AsyncIterator[Live]:
    """The API has the login that it has in production; the test itself has the owner's."""
    values = {
        "api_rate_per_s": 1e6,
        "api_burst": 1_000_000,
        "api_upload_folder": tmp_path / "uploads",
        "api_encryption_keys": ENCRYPTION_KEY,
    }
    settings = ApiSettings(database_url=SecretStr(logins.url("training_api", database_url)), **(values | api_settings))
    storage = FileStorage(tmp_path / "storage")
    database = Database(database_url, size=4, name="test")
    await database.open()
    base_id = await ModelStore(database).create_base_language("en", "English", "weights/en")
    async with serving(settings, storage, patience) as (url, app):
        made = Live(url, settings, database_url, database, KeyStore(database), storage, base_id, app)
        yield made
        for client in made.clients:
            await client.aclose()
    await database.close()
    await storage.aclose()


async def customer_of(live: Live, name: str) -> Customer:
    organization_id = await live.organization(name)
    key = await live.key(organization_id)
    return Customer(organization_id, key, live.client(key.secret), live.base_id)


@pytest.fixture
async def customer(live: Live) -> Customer:
    return await customer_of(live, "Clinic Ltd")


@pytest.fixture
async def stranger(live: Live) -> Customer:
    return await customer_of(live, "Somebody else")


@pytest.fixture
def make_wav() -> Callable[..., bytes]:
    return wav
