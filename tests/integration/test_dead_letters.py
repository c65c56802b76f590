"""What an operator does with dead letters: look without losing, send back, throw away."""

from __future__ import annotations

import pytest

from deploy.local.rabbitmq import call_management
from tests.messages_support import Line, body_of, line_to, running, until
from worker.errors import BrokerAway
from worker.intake import dead_letters


async def _depth(line: Line, wanted: int) -> bool:
    return await line.depth("training.runs.dead") == wanted


async def test_listing_shows_the_oldest_first_and_leaves_all_where_they_are(line, intake, vhost):
    for number in range(5):
        await line.publish(b"garbage %d" % number, message_id=str(number), headers={"from": "far"})
    async with running(intake):
        await until(lambda: _depth(line, 5))
    for _ in range(2):
        found = await dead_letters.letters(vhost, most=3)
        assert [letter.message_id for letter in found] == ["0", "1", "2"]
        assert [letter.body for letter in found] == [b"garbage 0", b"garbage 1", b"garbage 2"]
    assert found[0].reason == "not_json"
    assert found[0].detail
    assert found[0].first_seen.endswith("+00:00")
    assert found[0].headers["from"] == "far"
    assert await dead_letters.count(vhost) == 5


async def test_looking_ever_again_never_wears_a_letter_out(line, intake, vhost):
    """RabbitMQ 4 drops a message that went back to a quorum queue 20 times; here any number of looks is free."""
    await line.publish(b"garbage", message_id="kept")
    async with running(intake):
        await until(lambda: _depth(line, 1))
    counts = []
    for _ in range(25):
        [letter] = await dead_letters.letters(vhost)
        counts.append(letter.headers.get("x-delivery-count", 0))
        await until(lambda: _depth(line, 1))
    assert letter.message_id == "kept"
    assert letter.reason == "not_json"
    assert max(counts) <= 11


async def test_a_busy_models_request_is_replayed_once_its_run_is_over(shop, line, intake, vhost):
    first, second = shop.request(), shop.request()
    async with running(intake):
        await line.ask(first)
        await until(shop.count)
        await line.ask(second)
        await until(lambda: _depth(line, 1))
        [letter] = await dead_letters.letters(vhost)
        assert letter.reason == "run_active"

        assert await dead_letters.replay(vhost) == 1  # too early: it comes back, first seen as before
        await until(lambda: _depth(line, 1))
        [again] = await dead_letters.letters(vhost)
        assert again.first_seen == letter.first_seen
        assert again.message_id == str(second.run_id)

        await shop.database.execute(
            "with r as (update training_runs set status = 1, sequence = 2, ended_at = now() returning id) "
            "insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt) "
            "select gen_random_uuid(), id, 2, 2, 1, 0 from r"
        )
        assert await dead_letters.replay(vhost, {str(second.run_id)}) == 1
        await until(lambda: shop.status(second.run_id), "the second run's row")
    assert await dead_letters.count(vhost) == 0


async def test_only_the_chosen_are_replayed_or_discarded(line, intake, vhost):
    for number in range(6):
        await line.publish(b"garbage", message_id=str(number))
    async with running(intake):
        await until(lambda: _depth(line, 6))
    assert await dead_letters.discard(vhost, {"1", "3"}) == 2
    assert await dead_letters.replay(vhost, {"5"}) == 1
    assert [letter.message_id for letter in await dead_letters.letters(vhost)] == ["0", "2", "4"]
    assert await line.depth() == 1
    assert await dead_letters.discard(vhost) == 3
    assert await dead_letters.letters(vhost) == []


async def test_a_replay_that_the_broker_does_not_confirm_keeps_the_letter(line, intake, vhost, monkeypatch):
    await line.publish(b"garbage", message_id="kept")
    async with running(intake):
        await until(lambda: _depth(line, 1))
    queue = await line.channel.get_queue("training.runs")
    nowhere = dead_letters.REQUEST_ROUTING_KEY + ".nowhere"
    monkeypatch.setattr(dead_letters, "REQUEST_ROUTING_KEY", nowhere)
    with pytest.raises(BrokerAway, match="stays a dead letter"):
        await dead_letters.replay(vhost)
    assert [letter.message_id for letter in await dead_letters.letters(vhost)] == ["kept"]
    assert (await queue.declare()).message_count == 0


async def test_a_producers_user_id_does_not_keep_its_letter_from_being_written(shop, line, intake, vhost, services):
    """A broker refuses a message that names another user than the one who publishes it."""
    name = vhost.rsplit("/", 1)[1]
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    call_management(services.management_url, "PUT", "users/producer", {"password": "p", "tags": ""})
    call_management(services.management_url, "PUT", f"permissions/{name}/producer", everything)
    try:
        async with line_to(f"amqp://producer:p@{vhost.split('@')[1]}") as producer:
            await producer.publish(body_of(shop.request(model=424242)), user_id="producer")
        async with running(intake):
            await until(lambda: _depth(line, 1))
    finally:
        call_management(services.management_url, "DELETE", "users/producer")
