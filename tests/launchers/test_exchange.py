"""The folder between a worker and a step elsewhere."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.steps import Step, StepSpec
from tests.launchers.facts import FACTS
from worker.launchers.exchange.folder import FolderExchange, FolderExchanges
from worker.launchers.exchange.interface import Grant, Order, Question, UnreadableWord
from worker.launchers.log_copy import LogCopy

RUN = uuid4()


async def laid(root: Path, attempt: int = 1, token: str = "me") -> FolderExchange:
    spec = StepSpec(run_id=RUN, attempt=attempt, step=Step.TRAIN, recipe="r", recipe_version="1", seed=1, output="/o")
    order = Order(
        spec=spec,
        command=("true",),
        beat_s=1,
        patience_s=1,
        memory_limit_bytes=0,
        log_limit_bytes=1000,
        niceness=0,
        threads=None,
        added_environment={},
        garbage_limit=1,
    )
    exchange = await FolderExchanges(root).next(RUN, attempt, Step.TRAIN)
    await exchange.create(order, token)
    assert await exchange.order() == order
    return exchange


def grant(token: str) -> Grant:
    return Grant(owner=token, ask=1, remaining_s=5, stop=False, kill=False)


async def test_only_the_present_owners_grants_count(tmp_path: Path):
    exchange = await laid(tmp_path)
    await exchange.grant(grant("stranger"), Question())
    assert await exchange.granted() is None
    await exchange.grant(grant("me"), Question())
    assert await exchange.granted() == grant("me")
    await exchange.take_over("next")
    assert await exchange.granted() is None
    await exchange.grant(grant("me"), Question())
    assert await exchange.granted() is None


async def test_starts_of_the_same_step_are_counted_and_the_newest_attempts_last_is_found(tmp_path: Path):
    exchanges = FolderExchanges(tmp_path)
    assert await exchanges.newest(RUN, 9, Step.TRAIN) is None
    for attempt in (2, 10, 10):
        await laid(tmp_path, attempt)
    newest = await exchanges.newest(RUN, 11, Step.TRAIN)
    assert newest is not None
    assert (newest.attempt, newest.serial) == (10, 2)
    earlier = await exchanges.newest(RUN, 9, Step.TRAIN)
    assert earlier is not None
    assert (earlier.attempt, earlier.serial) == (2, 1)


async def test_earlier_attempts_that_have_not_ended_are_found(tmp_path: Path):
    first, second = await laid(tmp_path, 1), await laid(tmp_path, 2)
    await laid(tmp_path, 3)
    await first.end(FACTS)
    assert await first.ended() == FACTS
    found = await FolderExchanges(tmp_path).of_earlier_attempts(RUN, 3)
    assert [exchange.folder for exchange in found] == [second.folder]


async def test_a_step_begins_once(tmp_path: Path):
    exchange = await laid(tmp_path)
    await exchange.begin()
    with pytest.raises(FileExistsError):
        await exchange.begin()


async def test_what_cannot_be_understood_is_said_so(tmp_path: Path):
    exchange = await laid(tmp_path)
    (exchange.folder / "ended.json").write_text('{"reason": "whatever"}')
    with pytest.raises(UnreadableWord, match="EndFacts"):
        await exchange.ended()


async def test_nobody_else_may_read_the_order(tmp_path: Path):
    exchange = await laid(tmp_path)
    assert (exchange.folder / "order.json").stat().st_mode & 0o077 == 0
    assert exchange.folder.stat().st_mode & 0o077 == 0


async def test_only_runs_long_silent_are_removed(tmp_path: Path):
    exchange = await laid(tmp_path)
    assert await FolderExchanges(tmp_path).remove_old() == 0
    week_ago = time.time() - 8 * 24 * 3600
    for path in (exchange.folder, exchange.folder.parent):
        os.utime(path, (week_ago, week_ago))
    assert await FolderExchanges(tmp_path).remove_old() == 1
    assert list(tmp_path.iterdir()) == []


def test_copy_follows_a_log_that_grows_and_makes_room(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.write_text("an earlier step\n")
    copy = LogCopy(source, target)
    copy.follow()
    for content in ("one\n", "one\ntwo\n", "one\ntwo\n" * 400, "one\n[left out]\nthe end, differently\n"):
        source.write_text(content)
        copy.follow()
        assert target.read_text() == "an earlier step\n" + content
    copy.finish()
    assert target.read_text() == "an earlier step\n" + content
