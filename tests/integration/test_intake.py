"""From a message to a row: every case of the contract's section 4, against a real broker and database."""

from __future__ import annotations

import asyncio
import json
import uuid

import aio_pika
import pytest
from aiormq.abc import ChannelFrame

from deploy.local.rabbitmq import call_management
from tests.messages_support import Line, body_of, running, sample, until
from worker.broker import connected
from worker.errors import BrokerRefused, TopologyDiffers
from worker.intake.consumer import Intake
from worker.intake.topology import check, declare
from worker.metrics import Metrics


async def _dead(line: Line) -> aio_pika.abc.AbstractIncomingMessage:
    return await until(line.dead, "a dead letter")


async def _settled(line: Line) -> bool:
    """The request queue is empty, and nothing is under way: what was delivered has been acked."""
    return await line.depth() == 0


async def test_a_request_becomes_a_row(shop, line, intake, metrics):
    request = shop.request()
    async with running(intake):
        await line.ask(request, something_newer={"ignored": True})
        await until(lambda: shop.status(request.run_id), "the row")
        assert await shop.status(request.run_id) == 2
    assert sample(metrics, "training_messages_total", verdict="accepted") == 1
    row = await shop.database.fetch_row("select requested_at from training_runs")
    assert row["requested_at"] == request.requested_at


async def test_what_was_acked_is_gone_from_the_queue_after_the_worker_has_gone(shop, line, intake):
    async with running(intake):
        await line.ask(shop.request())
        await until(shop.count, "the row")
    await asyncio.sleep(0.2)  # a closed channel would have returned it by now
    assert await line.depth() == 0


async def test_a_duplicate_is_acked_and_leaves_the_row_alone(shop, line, intake, metrics):
    request = shop.request()
    async with running(intake):
        for _ in range(3):
            await line.ask(request)
        await until(lambda: sample(metrics, "training_messages_total", verdict="duplicate") == 2)
    assert await shop.count() == 1
    assert await line.depth("training.runs.dead") == 0


async def test_a_duplicate_of_a_run_that_is_over_is_still_only_a_duplicate(shop, line, intake, metrics):
    request = shop.request()
    await shop.runs.register([request])
    await shop.database.execute(
        "with r as (update training_runs set status = 1, sequence = 2, ended_at = now() returning id) "
        "insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt) "
        "select gen_random_uuid(), id, 2, 2, 1, 0 from r"
    )
    async with running(intake):
        await line.ask(request)
        await until(lambda: sample(metrics, "training_messages_total", verdict="duplicate") == 1)
    assert await shop.status(request.run_id) == 1


async def test_a_known_run_id_with_other_ids_is_a_conflict_and_the_row_is_untouched(shop, line, intake):
    request = shop.request()
    [other] = await shop.new_models(1)
    async with running(intake):
        await line.ask(request)
        await line.ask(request, custom_model_id=other)
        letter = await _dead(line)
    assert letter.headers["x-reason"] == "run_conflict"
    row = await shop.database.fetch_row("select custom_model_id from training_runs")
    assert row["custom_model_id"] == request.custom_model_id


async def test_a_message_id_that_differs_from_the_body_is_a_conflict(shop, line, intake):
    async with running(intake):
        await line.publish(body_of(shop.request()), message_id=str(uuid.uuid4()))
        letter = await _dead(line)
    assert letter.headers["x-reason"] == "run_conflict"
    assert await shop.count() == 0


async def test_an_unknown_model_is_a_dead_letter_with_everything_an_operator_needs(shop, line, intake):
    request = shop.request(model=999_999)
    async with running(intake):
        await line.publish(
            body_of(request), message_id=str(request.run_id), headers={"of-the-producer": 7}, user_id=None
        )
        letter = await _dead(line)
    assert letter.headers["x-reason"] == "model_unknown"
    assert "999999" in letter.headers["x-detail"]
    assert letter.headers["x-first-seen"]
    assert letter.headers["of-the-producer"] == 7
    assert (letter.body, letter.message_id) == (body_of(request), str(request.run_id))
    assert letter.delivery_mode == 2


async def test_another_organizations_model_looks_like_an_unknown_one(shop, line, intake):
    row = await shop.database.fetch_row("insert into organizations (name) values ('Other') returning id")
    async with running(intake):
        await line.ask(shop.request(organization_id=row["id"]))
        assert (await _dead(line)).headers["x-reason"] == "model_unknown"


async def test_a_deleted_model_is_a_dead_letter(shop, line, intake):
    await shop.database.execute("update custom_models set deleted_at = now()")
    async with running(intake):
        await line.ask(shop.request())
        assert (await _dead(line)).headers["x-reason"] == "model_deleted"


async def test_a_busy_model_is_a_dead_letter_that_names_the_run(shop, line, intake):
    first = shop.request()
    async with running(intake):
        await line.ask(first)
        await until(shop.count, "the row")
        await line.ask(shop.request())
        letter = await _dead(line)
    assert letter.headers["x-reason"] == "run_active"
    assert str(first.run_id) in letter.headers["x-detail"]


async def test_two_requests_for_one_model_in_one_delivery_give_one_run_and_one_dead_letter(shop, line, intake):
    first, second = shop.request(), shop.request()
    await line.ask(first)
    await line.ask(second)
    async with running(intake):
        letter = await _dead(line)
        await until(shop.count, "the row")
    assert letter.headers["x-reason"] == "run_active"
    assert await shop.count() == 1


GARBAGE = [
    b"",
    b"\x00\xff\xfe",
    b"[" * 60_000,
    b'{"a":' * 20_000,
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b'{"run_id": NaN}',
    b"{" + b" " * 70_000 + b"}",
    '{"run_id": "\ud800"}'.encode("utf-8", "surrogatepass"),
    json.dumps({"run_id": "../../etc/passwd"}).encode(),
    json.dumps({"run_id": str(uuid.uuid4()), "custom_model_id": True}).encode(),
    json.dumps(
        {
            "run_id": str(uuid.uuid4()),
            "custom_model_id": 10**400,
            "organization_id": 1,
            "requested_at": "2026-01-01T00:00:00Z",
        }
    ).encode(),
    json.dumps(
        {
            "run_id": str(uuid.uuid4()),
            "custom_model_id": 1,
            "organization_id": 1,
            "requested_at": "0001-01-01T00:00:00+14:00",
        }
    ).encode(),
]


async def test_garbage_of_every_kind_becomes_dead_letters_as_it_came_and_stops_nothing(shop, line, intake):
    for garbage in GARBAGE:
        await line.publish(garbage)
    await line.publish(b"<run/>", content_type="text/xml")
    await line.publish(b"{}", type="training.run.requested.v9")
    request = shop.request()
    await line.ask(request)
    async with running(intake):
        await until(lambda: shop.status(request.run_id), "the row behind the garbage")
        letters = [await _dead(line) for _ in range(len(GARBAGE) + 2)]
        await until(lambda: _settled(line))
    assert sorted(letter.body for letter in letters) == sorted([*GARBAGE, b"<run/>", b"{}"])
    assert {letter.headers["x-reason"] for letter in letters} == {
        "not_json", "malformed", "too_large", "content_type", "unknown_type",
    }  # fmt: skip


async def test_properties_that_no_library_can_read_do_not_stop_the_worker(shop, line, vhost, intake):
    """A timestamp beyond the calendar and a header name that is not UTF-8: pamqp raises, aiormq's reader dies."""
    connection = await aio_pika.connect(vhost)
    channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()

    async def raw(flags: int, properties: bytes) -> None:
        payload = b""
        frames = (
            (1, b"\x00\x3c\x00\x28\x00\x00" + b"\x08training" + b"\x16training.run.requested" + b"\x00"),
            (2, b"\x00\x3c\x00\x00" + (2).to_bytes(8, "big") + flags.to_bytes(2, "big") + properties),
            (3, b"{}"),
        )
        for kind, content in frames:
            payload += bytes([kind]) + channel.number.to_bytes(2, "big") + len(content).to_bytes(4, "big")
            payload += content + b"\xce"
        await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))

    table = b"\x03\xff\xfe\xfdt\x01"
    async with running(intake):
        await raw(64, (2**63 - 1).to_bytes(8, "big"))
        await raw(8192, len(table).to_bytes(4, "big") + table)
        await raw(128, b"\x02\xff\xfe")
        letters = [await _dead(line) for _ in range(3)]
        request = shop.request()
        await line.ask(request)
        await until(lambda: shop.status(request.run_id), "the row behind the garbage")
    await connection.close()
    assert {letter.headers["x-reason"] for letter in letters} == {"malformed"}


async def test_headers_that_fill_their_frame_are_left_behind_and_the_letter_is_kept(shop, line, intake):
    await line.publish(b"{", headers={"wide": "x" * 130_000})
    async with running(intake):
        letter = await _dead(line)
    assert letter.body == b"{"
    assert "wide" not in letter.headers


async def test_an_expiry_or_a_copy_list_of_the_producer_does_not_follow_the_dead_letter(shop, line, intake):
    await line.publish(b"{", headers={"CC": ["training.run.copied"]}, expiration=60)
    async with running(intake):
        letter = await _dead(line)
    assert letter.expiration is None
    assert "CC" not in letter.headers


async def test_unroutable_dead_letters_with_one_message_id_are_never_taken_for_confirmed(
    shop, line, vhost, intake, metrics
):
    same = str(uuid.uuid4())
    for _ in range(4):
        await line.publish(b"{", message_id=same)
    queue = await line.channel.get_queue("training.runs.dead")
    await queue.unbind("training.dead", "")
    async with running(intake):
        letters = [await _dead(line) for _ in range(4)]  # the topology is declared again, and they arrive
        await until(lambda: _settled(line))
    assert [letter.body for letter in letters] == [b"{"] * 4


@pytest.mark.timeout(180)
async def test_ten_thousand_garbage_messages_do_not_stop_it(shop, line, intake, metrics):
    for start in range(0, 10_000, 500):
        await asyncio.gather(*(line.publish(b"%d is no request" % number) for number in range(start, start + 500)))
    request = shop.request()
    await line.ask(request)
    async with running(intake):
        async with asyncio.timeout(120):
            while await shop.status(request.run_id) is None:
                await asyncio.sleep(0.1)
    assert sample(metrics, "training_messages_total", verdict="not_json") >= 10_000
    assert await line.depth("training.runs.dead") >= 10_000


# --- topology ----------------------------------------------------------------------------------------------------


async def _without_topology(vhost: str) -> aio_pika.abc.AbstractConnection:
    return await aio_pika.connect(vhost)


async def test_existing_objects_with_other_arguments_are_named_at_the_start(vhost, shop, metrics):
    connection = await aio_pika.connect(vhost)
    async with connection, connection.channel() as channel:
        await channel.declare_queue("training.runs", durable=True)
        await channel.declare_exchange("training", "direct", durable=True)
    intake = Intake(vhost, shop.runs, shop.runs.register, metrics)
    with pytest.raises(TopologyDiffers) as caught:
        await intake.run(asyncio.Event())
    text = str(caught.value)
    assert "queue training.runs has x-queue-type = classic, this worker needs quorum" in text.replace(
        "x-queue-type = none", "x-queue-type = classic"
    )
    assert "exchange training has type = direct, this worker needs topic" in text


async def test_doctor_sees_a_fresh_broker_changes_nothing_and_later_finds_all_as_it_should_be(vhost):
    before = await check(vhost)
    assert [finding.ok for finding in before] == [True] * 5
    assert "not there yet" in before[1].what
    assert "not there yet" in (await check(vhost))[1].what
    async with connected(vhost, "test") as connection:
        await declare(connection)
    assert {finding.what for finding in (await check(vhost))[1:]} == {"as it should be"}


async def test_doctor_names_a_difference_and_how_to_mend_it(vhost):
    connection = await aio_pika.connect(vhost)
    async with connection, connection.channel() as channel:
        await channel.declare_queue("training.runs.dead", durable=True)
    findings = {finding.name: finding for finding in await check(vhost)}
    assert not findings["queue training.runs.dead"].ok
    assert "x-queue-type" in findings["queue training.runs.dead"].what
    assert "delete the queue training.runs.dead" in findings["queue training.runs.dead"].mend


async def test_doctor_tells_wrong_credentials_from_no_broker(vhost):
    host = vhost.split("@")[1].split("/")[0]
    [refused] = await check(f"amqp://training:wrong@{host}/x")
    assert "password" in refused.mend
    [missing] = await check(vhost.rsplit("/", 1)[0] + "/no-such-vhost")
    assert not missing.ok
    assert "virtual host" in missing.mend
    [away] = await check("amqp://a:b@127.0.0.1:1/x")
    assert "Start RabbitMQ" in away.mend


async def test_a_user_who_may_only_read_and_write_uses_what_somebody_else_has_made(vhost, line, shop, services):
    name = vhost.rsplit("/", 1)[1]
    rights = {"configure": "", "write": ".*", "read": ".*"}
    call_management(services.management_url, "PUT", "users/narrow", {"password": "p", "tags": ""})
    call_management(services.management_url, "PUT", f"permissions/{name}/narrow", rights)
    request = shop.request()
    try:
        intake = Intake(f"amqp://narrow:p@{vhost.split('@')[1]}", shop.runs, shop.runs.register, Metrics())
        async with running(intake):
            await line.ask(request)
            await until(lambda: shop.status(request.run_id), "the row")
    finally:
        call_management(services.management_url, "DELETE", "users/narrow")


async def test_a_broker_that_keeps_refusing_ends_intake_with_a_typed_error(vhost, shop, metrics):
    host = vhost.split("@")[1]
    intake = Intake(f"amqp://training:wrong@{host}", shop.runs, shop.runs.register, metrics, refused_limit_s=0.5)
    async with asyncio.timeout(30):
        with pytest.raises(BrokerRefused):
            await intake.run(asyncio.Event())
    assert sample(metrics, "training_broker_reconnects_total") >= 2
