"""The gate: is a trained model worth using? Pure, with the figures it was decided on."""

from dataclasses import dataclass
from typing import Final

from schemas.status import Gate

LEAST_WORDS: Final = 150
"""Below this many reference words an error rate says nothing: one word is a whole point."""
LEAST_UTTERANCES: Final = 20
"""How often one of two equally good models is called better, where 2.5 % are meant, by utterances of 100 words in all:

| utterances | 1 | 2 | 5 | 10 | 20 |
|---|---|---|---|---|---|
| called better | 44 % | 18 % | 10 % | 4.5 % | 2.5 % |

`schemas.split_rule` makes a test of at least this size wherever there are enough data."""
LARGEST_GENERAL_LOSS: Final = 0.005
"""WER, as a fraction, that general speech may lose: 0.5 points."""


@dataclass(frozen=True)
class General:
    """What was measured on ordinary speech: on that part of the operator's general set which nothing was fitted to."""

    utterances: int = 0
    words: int = 0
    wer_base: float = 0.0
    wer_custom: float = 0.0
    change_low: float = 0.0

    @property
    def forgotten(self) -> bool:
        """Whether more was lost than may be, and surely so."""
        return self.wer_custom - self.wer_base > LARGEST_GENERAL_LOSS and self.change_low > 0


@dataclass(frozen=True)
class Measured:
    """Figures of the evaluation, WER as fractions; changes are custom minus base, 95 % paired bootstrap intervals."""

    test_utterances: int
    test_words: int
    wer_base: float
    wer_custom: float
    change_low: float
    change_high: float
    general: General | None = None
    """None where the operator has no general set."""


@dataclass(frozen=True)
class Decision:
    """The gate's answer, with a sentence a customer understands."""

    gate: Gate
    sentence: str


def decide(measured: Measured) -> Decision:
    """Publish only what is measurably better on the customer's test speech and still understands ordinary speech."""
    if not _enough(measured.test_utterances, measured.test_words):
        return Decision(
            Gate.TOO_LITTLE_TEST_DATA,
            f"The test speech has only {_counted(measured.test_utterances, 'sentence')} with"
            f" {_counted(measured.test_words, 'word')}: too few to tell whether the model is better. It takes at least"
            f" {LEAST_UTTERANCES} sentences and {LEAST_WORDS} words; a tenth of your speech is set aside for it.",
        )
    figures = f"{measured.wer_base:.1%} of words wrong before, {measured.wer_custom:.1%} after"
    if measured.change_high >= 0:
        return Decision(
            Gate.NO_IMPROVEMENT,
            f"The trained model is not measurably better on your test speech ({figures}), so the present one stays.",
        )
    general, unsure = measured.general, ""
    if general is not None and not _enough(general.utterances, general.words):
        unsure = " There was too little ordinary speech to tell whether it still understands that as well."
    elif general is not None and general.forgotten:
        return Decision(
            Gate.FORGETS,
            f"The trained model is better on your speech ({figures}) but understands ordinary speech less well"
            f" ({general.wer_base:.1%} before, {general.wer_custom:.1%} after), so the present one stays.",
        )
    return Decision(
        Gate.PUBLISHED, f"The trained model is better on your test speech: {figures}. It is in use now.{unsure}"
    )


def _enough(utterances: int, words: int) -> bool:
    return utterances >= LEAST_UTTERANCES and words >= LEAST_WORDS


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
