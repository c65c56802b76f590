"""Webhooks: registered, tested, signed and sent, with a log of every delivery."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import structlog
from fastapi import Request
from fastapi.responses import Response

from schemas.api import WebhookWanted
from worker.api import outward, present, quotas
from worker.api.api import Api
from worker.api.bodies import path_id, read_as, read_body
from worker.api.models import offset_and_limit
from worker.api.once import once
from worker.api.outward import Outward
from worker.api.problems import Refused, not_found
from worker.encryption import CannotDecryptError, Encryption
from worker.errors import DatabaseAway
from worker.store import webhooks as store
from worker.store.api import hold_organization
from worker.store.api_keys import Answer, Key, audit
from worker.store.database import Connection, Record
from worker.store.webhooks import WebhookStore

if TYPE_CHECKING:
    from worker.api.metrics import ApiMetrics  # which knows the routes, these handlers among them

_LOG: Final = structlog.get_logger("api")
MOST_WEBHOOKS: Final = 10
RETRIES_S: Final = (5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Seconds after each failed try; after the last one the delivery has failed."""
_HELD_S: Final = 60.0
_AT_ONCE: Final = 32
"""Deliveries under way; an organization has one of them, so that its silent receivers hold up nobody else's events."""
_LOOK_S: Final = 1.0
NO_KEY: Final = (
    "No webhook can be made here yet: the operator of this installation has to set WORKER_API_ENCRYPTION_KEYS, "
    "with which the secrets of webhooks are encrypted."
)


def organization_of(key: Key) -> int:
    """The organization of a key.

    Raises:
        Refused: an operator's key has none.
    """
    if key.organization_id is None:
        raise Refused("not_allowed", "Use a key of the organization.")
    return key.organization_id


def _show(row: Record, secret: str | None = None) -> dict[str, Any]:
    return {"id": row["id"], "url": row["url"], "created": row["created_at"], "secret": secret}


def _show_delivery(row: Record) -> dict[str, Any]:
    shown = {name: row[name] for name in ("id", "event_id", "kind", "status", "attempts", "answer_status", "error")}
    return shown | {"created": row["created_at"], "due": row["due_at"], "ended": row["ended_at"]}


async def list_webhooks(api: Api, key: Key, request: Request) -> Response:
    """GET /webhooks."""
    rows = await api.webhooks.of_organization(organization_of(key))
    return present.polled(request, present.page([_show(row) for row in rows], len(rows)))


async def create(api: Api, key: Key, request: Request) -> Response:
    """POST /webhooks: the secret is shown once, also where the request is repeated with its Idempotency-Key."""
    organization_id = organization_of(key)
    if not api.encryption:
        raise Refused("unavailable", NO_KEY)
    wanted, body = await read_as(request, WebhookWanted)
    try:
        target = api.outward.parse(wanted.url)
        async with api.registrations.turn(organization_id):
            await api.outward.resolve(target)
    except (outward.AddressRefused, outward.NotDelivered) as refused:
        raise Refused("address_refused", str(refused), errors=[("url", "address_refused", str(refused))]) from None
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()

    async def effect(connection: Connection) -> Answer:
        await hold_organization(connection, organization_id)  # two at once cannot both be the last one allowed
        if await store.count(connection, organization_id) >= MOST_WEBHOOKS:
            raise Refused(
                "quota_exceeded", f"An organization has at most {MOST_WEBHOOKS} webhooks. Delete one of them first."
            )
        row = await store.create(connection, organization_id, wanted.url, secret, api.encryption)
        await audit(
            connection, key, organization_id, "create_webhook", detail={"webhook": row["id"], "url": wanted.url}
        )
        await quotas.count_change(api, connection, organization_id)
        shown = present.answer(_show(row, secret), 201)
        # What is kept for a repeat would put the secret into the database and its backups, and show it again.
        return replace(shown, kept=present.answer(_show(row), 201).body)

    return await once(api, request, key, body, effect)


async def _webhook(api: Api, key: Key, request: Request) -> Record:
    webhook_id = path_id(request.path_params["webhook_id"], "webhook")
    row = await api.webhooks.webhook(webhook_id, key.organization_id)
    if row is None:
        raise not_found("webhook")
    return row


async def _webhook_now(connection: Connection, key: Key, webhook_id: int) -> Record:
    """The webhook of a write: looked up inside, so that a repeat gets its answer although the webhook is gone."""
    row = await store.read(connection, webhook_id, key.organization_id)
    if row is None:
        raise not_found("webhook")
    return row


async def delete(api: Api, key: Key, request: Request) -> Response:
    """DELETE /webhooks/{webhook_id}."""
    webhook_id = path_id(request.path_params["webhook_id"], "webhook")

    async def effect(connection: Connection) -> Answer:
        row = await _webhook_now(connection, key, webhook_id)
        if not await store.disable(connection, row["id"]):
            raise not_found("webhook")
        await audit(connection, key, row["organization_id"], "delete_webhook", detail={"webhook": row["id"]})
        return Answer(204, None, b"")

    return await once(api, request, key, b"", effect)


async def test(api: Api, key: Key, request: Request) -> Response:
    """POST /webhooks/{webhook_id}/test: an event that only says hello."""
    webhook_id = path_id(request.path_params["webhook_id"], "webhook")
    await read_body(request)

    async def effect(connection: Connection) -> Answer:
        row = await _webhook_now(connection, key, webhook_id)
        event_id = uuid4()
        body = {"type": "test.v1", "event_id": str(event_id), "at": datetime.now(UTC).isoformat()}
        delivery = await store.add_test(connection, row["id"], event_id, body)
        await quotas.count_change(api, connection, row["organization_id"])
        await audit(connection, key, row["organization_id"], "test_webhook", detail={"webhook": row["id"]})
        return present.answer(_show_delivery(delivery), 202)

    return await once(api, request, key, b"", effect)


async def list_deliveries(api: Api, key: Key, request: Request) -> Response:
    """GET /webhooks/{webhook_id}/deliveries."""
    offset, limit = offset_and_limit(request)
    row = await _webhook(api, key, request)
    total, rows = await api.webhooks.deliveries(row["id"], offset, limit)
    return present.polled(request, present.page([_show_delivery(delivery) for delivery in rows], total))


def signature(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """What a receiver compares: HMAC-SHA256 over id, time and body, as standardwebhooks.com has it.

    Args:
        secret: ``whsec_`` and base64.
        event_id: header ``webhook-id``.
        timestamp: header ``webhook-timestamp``, seconds since 1970; a receiver refuses old ones.
        body: the bytes as sent.
    """
    signed = f"{event_id}.{timestamp}.".encode() + body
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode()


class Sender:
    """Sends what is due, several at once, until it is cancelled."""

    def __init__(self, webhooks: WebhookStore, encryption: Encryption, way: Outward, metrics: "ApiMetrics") -> None:
        self._webhooks = webhooks
        self._encryption = encryption
        self._way = way
        self._metrics = metrics

    async def run(self) -> None:
        """Send for ever; a database that is away is waited for."""
        under_way: dict[asyncio.Task[None], int] = {}
        try:
            while True:
                for delivery in await self._due(list(under_way.values())):
                    under_way[asyncio.create_task(self._send(delivery))] = delivery["organization_id"]
                if not under_way:
                    await asyncio.sleep(_LOOK_S)
                    continue
                ended, _ = await asyncio.wait(under_way, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    del under_way[task]
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _due(self, busy: list[int]) -> Sequence[Record]:
        """What can be begun now, of organizations that are not busy."""
        if len(busy) >= _AT_ONCE:
            return ()
        try:
            return await self._webhooks.claim(_AT_ONCE - len(busy), _HELD_S, busy)
        except DatabaseAway:
            return ()

    async def _send(self, delivery: Record) -> None:
        """One try; whatever goes wrong is this delivery's own."""
        try:
            await self._try(delivery)
        except DatabaseAway:
            pass  # it is due again when its hold ends
        except Exception:  # noqa: BLE001 - logged
            _LOG.exception("webhook delivery", delivery=delivery["id"])

    async def _try(self, delivery: Record) -> None:
        try:
            status, error = await self._attempt(delivery)
        except Exception:  # noqa: BLE001 - logged; counted as a try, or it would come back for ever
            _LOG.exception("webhook delivery", delivery=delivery["id"])
            status, error = None, "a fault of ours; it is logged"
        attempt = delivery["attempts"]
        result = "delivered" if error is None else "failed" if attempt > len(RETRIES_S) else "retried"
        self._metrics.deliveries.labels(result).inc()
        if error is None:
            await self._webhooks.end(delivery["id"], attempt, "delivered", status, None, 0)
        elif attempt > len(RETRIES_S):
            await self._webhooks.end(delivery["id"], attempt, "failed", status, error, 0)
        else:
            await self._webhooks.end(delivery["id"], attempt, "waiting", status, error, RETRIES_S[attempt - 1])

    def _secret(self, delivery: Record) -> str:
        """The webhook's secret.

        Raises:
            CannotDecryptError: none of our keys decrypts it, or there is none.
        """
        if delivery["secret"] is not None:
            return str(delivery["secret"])
        if delivery["sealed_secret"] is None:
            raise CannotDecryptError("the webhook has no secret")
        owner = store.owner_of(delivery["webhook_id"], delivery["organization_id"])
        return self._encryption.decrypt(delivery["sealed_secret"], owner)

    async def _attempt(self, delivery: Record) -> tuple[int | None, str | None]:
        """The answer's status and what went wrong."""
        try:
            secret = self._secret(delivery)
        except CannotDecryptError as error:
            _LOG.error("webhook secret", webhook=delivery["webhook_id"], error=str(error))
            return None, "the secret cannot be decrypted here; the operator is told"
        body = json.dumps(delivery["body"], separators=(",", ":")).encode()
        event_id, now = str(delivery["event_id"]), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "speech-training-worker",
            "webhook-id": event_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, event_id, now, body),
        }
        try:
            status = await self._way.post(self._way.parse(delivery["url"]), headers, body)
        except (outward.AddressRefused, outward.NotDelivered) as failed:
            return None, str(failed)
        return status, None if 200 <= status < 300 else f"answered {status}"  # noqa: PLR2004 - what HTTP calls success
