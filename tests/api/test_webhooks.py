"""Webhooks: signed, told of every move, tried again, and never led to an internal address."""

import asyncio
import base64
import hashlib
import hmac
import json

import pytest

from worker.api import webhooks


class Receiver:
    """A small HTTP server that keeps what it was sent."""

    def __init__(self):
        self.got = asyncio.Queue()
        self.status = 200

    async def __call__(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        await self.got.put((head.split("\r\n")[0], headers, body))
        writer.write(f"HTTP/1.1 {self.status} X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver():
    made = Receiver()
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1"
    async with server:
        yield made


def assert_signed(secret, headers, body):
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()


class TestDelivery:
    @pytest.fixture
    def api_settings(self):
        return {"api_webhook_private": True}

    async def test_moves_of_a_run_are_told_signed(self, customer, receiver):
        made = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
        assert (await customer.http.get("/webhooks")).json()["result"][0]["secret"] is None
        model = await customer.trainable_model()
        await customer.http.post(f"/custom_models/{model['id']}/run")
        line, headers, body = await asyncio.wait_for(receiver.got.get(), 20)
        assert line == "POST /hook?x=1 HTTP/1.1"
        assert_signed(made["secret"], headers, body)
        event = json.loads(body)
        assert (event["type"], event["to"], event["custom_model_id"]) == ("training.run.queued.v1", 2, model["id"])
        assert headers["webhook-id"] == event["event_id"]

    async def test_a_test_event_is_sent_and_logged(self, customer, receiver):
        hook = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
        assert (await customer.http.post(f"/webhooks/{hook['id']}/test")).status_code == 202
        await asyncio.wait_for(receiver.got.get(), 20)
        async with asyncio.timeout(20):
            while True:
                log = (await customer.http.get(f"/webhooks/{hook['id']}/deliveries")).json()["result"]
                if log[0]["status"] == "delivered":
                    break
                await asyncio.sleep(0.05)
        assert (log[0]["kind"], log[0]["attempts"], log[0]["answer_status"]) == ("test", 1, 200)

    async def test_a_failed_delivery_is_tried_again_later_and_fails_at_the_end(self, live, customer, receiver):
        receiver.status = 302
        hook = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
        await customer.http.post(f"/webhooks/{hook['id']}/test")
        for attempt in range(len(webhooks.RETRIES_S) + 1):
            await asyncio.wait_for(receiver.got.get(), 20)
            async with asyncio.timeout(20):
                while True:
                    log = (await customer.http.get(f"/webhooks/{hook['id']}/deliveries")).json()["result"][0]
                    if (
                        log["error"]
                        and log["attempts"] == attempt + 1
                        and (log["status"] == "failed" or log["due"] > log["created"])
                    ):
                        break
                    await asyncio.sleep(0.02)
            assert (log["answer_status"], log["error"]) == (302, "answered 302")
            # The time of the next try has come. Its error is cleared so that the next one is seen only when that try has
            # ended: a held row still shows the error of the try before.
            await live.database.execute(
                "update webhook_deliveries set due_at = now(), error = null "
                "where status = 'waiting' and error is not null"
            )
        assert log["status"] == "failed"

    async def test_a_deleted_webhook_hears_nothing_more(self, live, customer, receiver):
        hook = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
        assert (await customer.http.delete(f"/webhooks/{hook['id']}")).status_code == 204
        model = await customer.trainable_model()
        await customer.http.post(f"/custom_models/{model['id']}/run")
        assert (await live.database.fetch_row("select count(*) as n from webhook_deliveries"))["n"] == 0


async def test_internal_addresses_are_refused(customer):
    for url in (
        "http://example.com/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://0/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://user:password@example.com/",
        "https://example.com:22/",
        "https://exa mple.com/",
        "ftp://example.com/",
        "nonsense",
        "https://",
        "https://[bad",
    ):
        answer = await customer.http.post("/webhooks", json={"url": url})
        assert (url, answer.status_code, answer.json()["code"]) == (url, 422, "address_refused")
