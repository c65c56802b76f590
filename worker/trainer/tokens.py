"""How many tokens write a transcript: told by the base's tokenizer alone, without its weights."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from worker.trainer.verdicts import Refusal

LONGEST_TEXT: Final = 440
"""Tokens that fit Whisper's decoder, which has 448 places, beside its prompt and its end."""


class Lengths:
    """Refuses transcripts that the base cannot write in one window.

    Args:
        base: its folder; asked for, and its tokenizer loaded, only when a transcript may be too long.
    """

    def __init__(self, base: Callable[[], Path]) -> None:
        self._base = base

    def refusal(self, text: str) -> Refusal | None:
        """Refuse a transcript of more than `LONGEST_TEXT` tokens; how many letters that are depends on the script."""
        written = " " + text.strip()
        if len(written.encode()) <= LONGEST_TEXT:  # every token stands for a byte at least
            return None
        tokens = len(self._tokenizer.encode(written, add_special_tokens=False).ids)
        if tokens <= LONGEST_TEXT:
            return None
        sentence = f"The transcript takes {tokens} of the model's tokens; a segment can have at most {LONGEST_TEXT}."
        return Refusal("transcript_too_long", sentence)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer  # noqa: PLC0415 - most data sets need none

        tokenizer = Tokenizer.from_file(str(self._base() / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # in a transcript they are letters like others
        return tokenizer
