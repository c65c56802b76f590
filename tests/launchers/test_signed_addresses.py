"""A step's addresses: asked for once, used while they are fresh, refused when its owner says no."""

import asyncio

import pytest

from worker.launchers.exchange.interface import MOST_WANTS
from worker.launchers.exchange.signed_addresses import SignedAddresses
from worker.launchers.exchange.signed_http import AddressRefusedError, GivenUpError


async def wanted(addresses: SignedAddresses, want: str) -> asyncio.Task[str]:
    task = asyncio.create_task(addresses.get(want))
    await asyncio.sleep(0)
    return task


async def test_a_want_waits_for_the_word_that_answers_it():
    addresses = SignedAddresses({"own:word": "http://word"})
    assert addresses.at_hand("own:word") == "http://word"
    task = await wanted(addresses, "put:train/x")
    assert addresses.wants(1) == ("put:train/x",)
    addresses.take({}, 0, 60)
    assert not task.done()
    addresses.take({"put:train/x": "http://x"}, 1, 60)
    assert await task == "http://x"
    assert addresses.wants(2) == ()


async def test_what_the_owner_does_not_give_is_refused_by_the_word_that_answers_the_question():
    addresses = SignedAddresses({})
    task = await wanted(addresses, "get:somebody/elses")
    addresses.wants(5)
    addresses.take({}, 5, 60)
    with pytest.raises(AddressRefusedError):
        await task


async def test_those_of_the_exchange_are_kept_while_fresh_and_asked_for_ahead():
    addresses = SignedAddresses({})
    addresses.ahead = ["own:log"]
    assert addresses.wants(1) == ("own:log",)
    addresses.take({"own:log": "http://1"}, 1, 60)
    assert addresses.wants(2) == ()
    assert await addresses.get("own:log") == "http://1"
    addresses.take({"own:log": "http://2"}, 2, -1)
    assert addresses.wants(3) == ("own:log",)
    addresses.forget("own:log")
    with pytest.raises(AddressRefusedError):
        addresses.at_hand("own:log")


async def test_a_question_asks_for_a_bounded_number_and_for_its_own_first():
    addresses = SignedAddresses({})
    tasks = [await wanted(addresses, f"get:{n}") for n in range(MOST_WANTS + 5)]
    addresses.ahead = ["own:ended.json"]
    asked = addresses.wants(1)
    assert len(asked) == MOST_WANTS
    assert asked[0] == "own:ended.json"
    addresses.give_up()
    for task in tasks:
        with pytest.raises(GivenUpError):
            await task
    with pytest.raises(GivenUpError):
        await addresses.get("get:more")


async def test_an_address_is_kept_until_it_was_used_up_and_an_older_word_does_not_bring_it_back():
    addresses = SignedAddresses({})
    task = await wanted(addresses, "get:x")
    addresses.wants(1)
    addresses.take({"get:x": "http://1"}, 1, 60)
    assert await task == await addresses.get("get:x") == "http://1"
    addresses.forget("get:x")
    task = await wanted(addresses, "get:x")
    assert addresses.wants(2) == ("get:x",)
    addresses.take({"get:x": "http://1"}, 1, 60)
    assert not task.done()
    addresses.take({"get:x": "http://2"}, 2, 60)
    assert await task == "http://2"


async def test_an_address_that_is_not_fresh_any_more_is_asked_for_again():
    addresses = SignedAddresses({})
    task = await wanted(addresses, "get:x")
    addresses.wants(1)
    addresses.take({"get:x": "http://1"}, 1, 0)
    assert await task == "http://1"
    task = await wanted(addresses, "get:x")
    assert addresses.wants(2) == ("get:x",)
    addresses.take({"get:x": "http://2"}, 2, 60)
    assert await task == "http://2"
