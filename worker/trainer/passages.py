"""Utterances joined as people say them: a model that heard only single ones ends after the first of several."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from worker.trainer.dataset import Passage, Utterance
from worker.trainer.states import TAIL_S
from worker.trainer.tokens import LONGEST_TEXT
from worker.trainer.whisper import WINDOW_S

LONGEST_S: Final = WINDOW_S - TAIL_S
_SHORTEST_S: Final = 6.0
"""Each passage has a length of its own to fill, from here to the longest: its end may come at any place."""
_PAUSES_S: Final = (0.2, 1.0)


def joined(utterances: Sequence[Utterance], seed: str, tokens: Callable[[str], int]) -> list[Passage]:
    """Every utterance in one passage with others of its speaker; the same for a seed.

    Args:
        utterances: what to join.
        seed: decides who follows whom, after which pause, and how long each passage is.
        tokens: how many tokens write a text. A passage has at most `LONGEST_S` seconds and as many tokens as can be
            decoded; an utterance that has more by itself is a passage alone.
    """
    source = random.Random(seed)  # noqa: S311 - the same passages again is the point
    by_speaker: defaultdict[str | None, list[Utterance]] = defaultdict(list)
    for one in utterances:
        by_speaker[one.speaker].append(one)
    passages: list[Passage] = []
    for spoken in by_speaker.values():
        source.shuffle(spoken)
        passage, wanted_s, written = Passage(), 0.0, 0
        for one in spoken:
            written += (more := tokens(one.text))
            longer = passage.followed_by(one, source.uniform(*_PAUSES_S))
            if passage.utterances and (longer.seconds > wanted_s or written > LONGEST_TEXT):
                passages.append(passage)
                passage, longer, written = Passage(), Passage().followed_by(one, 0.0), more
            if not passage.utterances:
                wanted_s = source.uniform(_SHORTEST_S, LONGEST_S)
            passage = longer
        passages.append(passage)
    source.shuffle(passages)
    return passages
