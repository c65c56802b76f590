"""A step's events on their way from its outpost to the owner."""

from pathlib import Path

import pytest

from schemas.events import EVENT, LONGEST_LINE, Event, Failure, encode
from schemas.failures import FailureClass
from tests.launchers.facts import FACTS
from worker.launchers.event_stream import EventStream
from worker.launchers.exchange.folder import FolderExchange
from worker.launchers.exchange.interface import NodeSide
from worker.launchers.exchange.storage_node import StorageNode


@pytest.fixture
def grows() -> Event:
    """What a recipe may say, and is longer when it is said again."""
    line = b'{"event":"result","figures":{"curve":[' + b",".join([b"1e15"] * 12_900) + b"]}}\n"
    assert len(line) < LONGEST_LINE
    event = EVENT.validate_json(line)
    with pytest.raises(ValueError, match="event line of"):
        encode(event)
    return event


@pytest.fixture(params=["folder", "storage"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> NodeSide:
    if request.param == "storage":
        return StorageNode("http://claim", "http://word", scratch=tmp_path)
    folder = tmp_path / "run" / "1-train-1"
    folder.mkdir(parents=True)
    return FolderExchange(folder)


async def test_an_event_that_grows_beyond_a_line_is_a_failure_with_a_code(side: NodeSide, tmp_path: Path, grows: Event):
    if isinstance(side, StorageNode):
        side._write(grows)
        side._events.close()
    elif isinstance(side, FolderExchange):
        await side.pass_on(grows)
        await side.end(FACTS)
    stream = EventStream()
    stream.push(next(tmp_path.rglob("events")).read_bytes())
    word = stream.last_word
    assert isinstance(word, Failure)
    assert (word.failure_class, word.code) == (FailureClass.BUG, "event_too_long")
    assert "result: event line of" in word.detail
