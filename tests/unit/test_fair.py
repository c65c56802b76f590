"""Places that many share: no holder takes all, the last are for who has none, and nothing is lost or doubled."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fair import FairShares


def test_one_holder_gets_at_most_its_part():
    shares = FairShares(8, 3)
    assert [shares.try_take("a") for _ in range(5)] == [True, True, True, False, False]


def test_the_last_places_are_for_who_has_none():
    shares = FairShares(8, 4, reserve=2)
    assert [shares.try_take(holder) for holder in "aaaabbbb"] == [True] * 6 + [False] * 2
    assert shares.try_take("c")
    assert shares.try_take("d")
    assert not shares.try_take("e")


def test_amounts_are_taken_whole_or_not_at_all():
    shares = FairShares(10, 6)
    assert shares.try_take("a", 6)
    assert not shares.try_take("b", 5)
    assert shares.try_take("b", 4)
    shares.release("a", 6)
    assert (shares.taken, shares.held("a"), shares.held("b")) == (4, 0, 4)


async def holding(shares, holder, begun, over):
    async with shares.turn(holder):
        begun.append(holder)
        await over.wait()


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_is_served_when_a_place_is_free_and_who_has_least_comes_first():
    shares, begun, over = FairShares(4, 3), [], asyncio.Event()
    tasks = [asyncio.create_task(holding(shares, "greedy", begun, over)) for _ in range(10)]
    await settled()
    assert begun == ["greedy"] * 3
    shares.try_take("other")
    tasks.append(asyncio.create_task(holding(shares, "modest", begun, over)))
    await settled()
    assert len(begun) == 3
    shares.release("other")
    await settled()
    assert begun[3] == "modest"
    over.set()
    await asyncio.gather(*tasks)
    assert len(begun) == 11
    assert shares.taken == 0


async def test_a_long_queue_of_one_does_not_go_before_others_who_hold_as_little():
    shares, begun = FairShares(1, 1), []

    async def holding_once(holder):
        async with shares.turn(holder):
            begun.append(holder)
            await settled()

    tasks = [asyncio.create_task(holding_once(holder)) for holder in ("flood", "flood", "flood", "a", "flood", "b")]
    await asyncio.gather(*tasks)
    assert begun == ["flood", "flood", "a", "b", "flood", "flood"]
    assert not shares._waiting


async def test_a_wait_that_is_given_up_takes_no_place():
    shares, begun, over = FairShares(1, 1), [], asyncio.Event()
    tasks = [asyncio.create_task(holding(shares, "a", begun, over)) for _ in range(4)]
    await settled()
    tasks[1].cancel()
    await settled()
    tasks[2].cancel()
    over.set()  # granted and cancelled in the same moment
    await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == ["a", "a"]
    assert shares.taken == 0
    assert not shares._waiting


@given(
    total=st.integers(1, 6),
    most=st.integers(1, 6),
    reserve=st.integers(0, 3),
    moves=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60),
)
def test_whatever_happens_the_sums_are_right(total, most, reserve, moves):
    shares, held = FairShares(total, most, reserve), dict.fromkeys("abcd", 0)
    for holder, takes in moves:
        if takes:
            taken = shares.try_take(holder)
            assert taken <= (held[holder] < most)
            held[holder] += taken
        elif held[holder]:
            shares.release(holder)
            held[holder] -= 1
        assert shares.taken == sum(held.values()) <= total
        assert all(shares.held(one) == many for one, many in held.items())


@pytest.mark.parametrize("total", [1, 2, 3])
def test_few_places_leave_somebody_one(total):
    assert FairShares(total, 0, reserve=9).try_take("a")
