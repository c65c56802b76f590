"""Utterances joined into passages: which, how long, what is heard of them, and what was dropped."""

import dataclasses

import pytest

pytest.importorskip("torch")

from worker.trainer.dataset import Dataset, Passage
from worker.trainer.passages import LONGEST_S, joined
from worker.trainer.scoring import dropped
from worker.trainer.tokens import LONGEST_TEXT

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("default")]


def words(text):
    return len(text.split())


@pytest.fixture
def utterances(dataset):
    return Dataset(dataset).utterances


def test_every_utterance_is_in_one_passage_with_its_own_speaker_only(utterances):
    passages = joined(utterances, "any", words)
    rows = [one.row for passage in passages for one in passage.utterances]
    assert sorted(rows) == [one.row for one in utterances]
    assert all(len({one.speaker for one in passage.utterances}) == 1 for passage in passages)
    assert max(len(passage.utterances) for passage in passages) > 3


def test_passages_fit_their_window_but_for_an_utterance_that_is_longer_by_itself(utterances):
    long = dataclasses.replace(utterances[0], samples=16_000 * 30)
    passages = joined([long, *utterances[1:]], "any", words)
    assert [one.utterances for one in passages if one.seconds > LONGEST_S] == [(long,)]


def test_passages_hold_no_more_tokens_than_can_be_decoded(utterances):
    passages = joined(utterances, "any", lambda text: 10 * words(text))
    assert max(sum(10 * words(one.text) for one in passage.utterances) for passage in passages) <= LONGEST_TEXT
    alone = joined(utterances, "any", lambda _: LONGEST_TEXT + 1)
    assert {len(passage.utterances) for passage in alone} == {1}


def test_the_same_seed_joins_alike_and_another_does_not(utterances):
    one, same, another = (joined(utterances, seed, words) for seed in ("one", "one", "another"))
    assert one == same != another


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_a_passage_sounds_like_its_utterances_one_after_the_other(dataset, utterances, speed):
    data, (first, second) = Dataset(dataset), utterances[:2]
    passage = Passage().followed_by(first, 9.0).followed_by(second, 0.5)
    assert passage.text == f"{first.text} {second.text}"
    assert passage.seconds == pytest.approx(first.seconds + 0.5 + second.seconds)
    heard = data.sound([passage], 6.0, [speed])[0]
    place = round((first.seconds + 0.5) / speed * 16_000)
    length = round(second.seconds / speed * 16_000) - 1
    assert heard[: round(first.seconds * 16_000)].equal(data.sound([first], first.seconds, [speed])[0])
    assert heard[place : place + length].equal(data.sound([second], 6.0, [speed])[0, :length])
    assert heard[place - 4_000 : place].abs().max() == 0


@pytest.mark.parametrize(
    ("heard", "missing"),
    [
        ("start the new dose today stop it after lunch", 0),
        ("start the new dose today", 1),
        ("stop it after lunch", 1),
        ("star the you dose today stop it", 0),
        ("", 2),
    ],
)
def test_a_sentence_of_which_hardly_a_word_was_heard_was_dropped(heard, missing):
    assert dropped(["start the new dose today", "stop it after lunch"], heard) == missing
