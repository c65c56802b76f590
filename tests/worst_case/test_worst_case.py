"""No parser of the API or of the worker takes more time than its input is long."""

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.worst_case.oracle import cost
from tests.worst_case.parsers import CUES, PARSERS, Parser
from tests.worst_case.search import Pump, measured, search

KB = 1 << 10
CHANCE = 20_261_128
PUMPS = 12
"""For each parser: the long search tries thousands."""

KNOWN = [
    ("plain transcript", Pump("a", "\u0316\u0301", "")),
    ("plain transcript", Pump("a", "\u0f73\u0301", "")),
    ("cue", Pump("", "<v.", "")),
    ("short cues", Pump("", "<v.", "")),
    ("cue", Pump("&#", "9", ";")),
    ("cue", Pump("<v ", " ", "")),
    ("cue", Pump("", "{\\", "")),
    ("cue", Pump("", "[", "")),
    ("timed transcript", Pump("", "-->\n", "")),
    ("timed transcript", Pump("", " ", "-->")),
    ("manifest line, text", Pump("a", "\u0316\u0301", "")),
    ("manifest line, path", Pump("a", "\u0316\u0301", ".wav")),
    ("manifest line, speaker", Pump("a", "\u0316\u0301", "")),
    ("name in a manifest", Pump("a", "\u0316\u0301", ".wav")),
    ("file name", Pump("a", "\u0316\u0301", ".wav")),
    ("name of a model", Pump("a", "\u0316\u0301", "")),
    ("recordings by name", Pump("", "a/", "a.wav")),
    ("multipart boundary", Pump("", ";", "")),
    ("flac header", Pump("", "\udcff\udcf8", "")),
]


@pytest.mark.parametrize(("name", "pump"), KNOWN)
def test_no_known_attack_takes_more_than_its_length(name, pump):
    found = measured(PARSERS[name], pump)
    assert found.too_much(PARSERS[name].most_per_kb) is None, found


@pytest.mark.parametrize("name", PARSERS)
def test_no_repeated_fragment_makes_a_parser_slow(name):
    found, _ = search(PARSERS[name], PUMPS, CHANCE)
    assert not found, found[0]


_QUADRATIC = {
    "a sort of marks": Parser(lambda data: unicodedata.normalize("NFC", data.decode()), (), 64 * KB),
    "a pattern for voices": Parser(
        lambda data: re.compile(r"<v(?:\.[^ \t>]*)?[ \t]+([^<>]{1,200})>").findall(data.decode()), CUES, 64 * KB
    ),
}


@pytest.mark.parametrize("name", _QUADRATIC)
def test_the_search_finds_what_it_was_made_for(name):
    """Without a hint: these two stood in this product once."""
    found, _ = search(_QUADRATIC[name], 400, CHANCE)
    assert found
    assert "the time grows" in str(found[0].cost.too_much())


def test_a_parser_that_is_slow_and_linear_is_found_too():
    def slow(data: bytes) -> int:
        return sum(sum(range(200_000)) for _ in range(len(data) // 256))

    assert "a kilobyte takes" in str(cost(slow, bytes, 64 * KB).too_much())


@pytest.mark.search
@pytest.mark.timeout(900)
def test_the_long_search_finds_nothing():
    command = [sys.executable, "-m", "tests.worst_case.search", "--minutes", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
