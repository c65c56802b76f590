"""The gate: is a trained model worth using? Pure, with the figures it was decided on."""

from dataclasses import dataclass
from typing import Final

from schemas.status import Gate

LEAST_TEST_WORDS: Final = 100
"""Below this many reference words an error rate says nothing: one word is a whole point."""
LARGEST_GENERAL_LOSS: Final = 0.005
"""WER, as a fraction, that general speech may lose: 0.5 points."""


@dataclass(frozen=True)
class Measured:
    """Figures of the evaluation, WER as fractions; changes are custom minus base, 95 % paired bootstrap intervals."""

    test_words: int
    wer_base: float
    wer_custom: float
    change_low: float
    change_high: float
    general_base: float | None = None
    general_custom: float | None = None
    general_change_low: float | None = None


@dataclass(frozen=True)
class Decision:
    """The gate's answer, with a sentence a customer understands."""

    gate: Gate
    sentence: str


def decide(measured: Measured) -> Decision:
    """Publish only what is measurably better on the customer's test speech and still understands ordinary speech."""
    if measured.test_words < LEAST_TEST_WORDS:
        return Decision(
            Gate.TOO_LITTLE_TEST_DATA,
            f"Only {measured.test_words} words of test speech: too few to tell whether the model is better."
            f" Add recordings until there are at least {LEAST_TEST_WORDS} test words; one file in ten is for test.",
        )
    figures = f"{measured.wer_base:.1%} of words wrong before, {measured.wer_custom:.1%} after"
    if measured.change_high >= 0:
        return Decision(
            Gate.NO_IMPROVEMENT,
            f"The trained model is not measurably better on your test speech ({figures}), so the present one stays.",
        )
    if (
        measured.general_base is not None
        and measured.general_custom is not None
        and measured.general_change_low is not None
        and measured.general_custom - measured.general_base > LARGEST_GENERAL_LOSS
        and measured.general_change_low > 0
    ):
        return Decision(
            Gate.FORGETS,
            f"The trained model is better on your speech ({figures}) but understands ordinary speech less well"
            f" ({measured.general_base:.1%} before, {measured.general_custom:.1%} after), so the present one stays.",
        )
    return Decision(Gate.PUBLISHED, f"The trained model is better on your test speech: {figures}. It is in use now.")
