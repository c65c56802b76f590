"""The folder between a worker and a step elsewhere."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.steps import Step, StepSpec
from worker.launchers.exchange import Exchange, Grant, Order, remove_old
from worker.launchers.log_copy import LogCopy

RUN = uuid4()


def laid(root: Path, attempt: int = 1, token: str = "me") -> Exchange:
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
    exchange = Exchange.next(root, RUN, attempt, Step.TRAIN)
    exchange.create(order, token)
    assert exchange.order() == order
    return exchange


def grant(token: str) -> Grant:
    return Grant(owner=token, ask=1, remaining_s=5, stop=False, kill=False)


def test_only_the_present_owners_grants_count(tmp_path: Path):
    exchange = laid(tmp_path)
    exchange.grant(grant("stranger"))
    assert exchange.granted() is None
    exchange.grant(grant("me"))
    assert exchange.granted() == grant("me")
    exchange.take_over("next")
    assert exchange.granted() is None
    exchange.grant(grant("me"))
    assert exchange.granted() is None


def test_starts_of_the_same_step_are_counted_and_the_newest_attempts_last_is_found(tmp_path: Path):
    assert Exchange.newest(tmp_path, RUN, 9, Step.TRAIN) is None
    laid(tmp_path, 2), laid(tmp_path, 10), laid(tmp_path, 10)
    newest = Exchange.newest(tmp_path, RUN, 11, Step.TRAIN)
    assert newest is not None
    assert (newest.attempt, newest.serial) == (10, 2)
    earlier = Exchange.newest(tmp_path, RUN, 9, Step.TRAIN)
    assert earlier is not None
    assert (earlier.attempt, earlier.serial) == (2, 1)


def test_earlier_attempts_that_have_not_ended_are_found(tmp_path: Path):
    first, second = laid(tmp_path, 1), laid(tmp_path, 2)
    laid(tmp_path, 3)
    first.end({"reason": "exited"})
    assert [found.folder for found in Exchange.of_earlier_attempts(tmp_path, RUN, 3)] == [second.folder]


def test_a_step_begins_once(tmp_path: Path):
    exchange = laid(tmp_path)
    exchange.begin()
    with pytest.raises(FileExistsError):
        exchange.begin()


def test_nobody_else_may_read_the_order(tmp_path: Path):
    exchange = laid(tmp_path)
    assert (exchange.folder / "order.json").stat().st_mode & 0o077 == 0
    assert exchange.folder.stat().st_mode & 0o077 == 0


def test_only_runs_long_silent_are_removed(tmp_path: Path):
    exchange = laid(tmp_path)
    assert remove_old(tmp_path) == 0
    week_ago = time.time() - 8 * 24 * 3600
    for path in (exchange.folder, exchange.folder.parent):
        os.utime(path, (week_ago, week_ago))
    assert remove_old(tmp_path) == 1
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
