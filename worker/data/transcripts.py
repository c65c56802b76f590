"""Transcripts as text: encodings, and the cues of .vtt and .srt. Whatever is wrong costs one cue, not the file.

Every pattern here meets strangers' text. None may try the same characters again from each of many starting points: what
one match passes over excludes the character that begins a match, or is bounded by a small number.
"""

import codecs
import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from schemas.text import TextTooLong, normalized

MOST_CUES: Final = 100_000
"""In one file, those that cannot be used included."""
LONGEST_UTTERANCE: Final = 10_000
"""Characters. In 30 s nobody says a tenth of that."""
LONGEST_CUE: Final = 20_000
"""Characters of a cue with its mark-up, of which subtitles that time each word have much."""
_LONGEST_TIMING: Final = 200
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: it begins with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_TIME: Final = r"(?:(\d{1,4}):)?(\d{1,3}):(\d{1,2})[.,](\d{1,3})"
_TIMING: Final = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)")
_VOICE: Final = re.compile(r"<v(?:\.[^ \t<>]{0,100})?[ \t]{1,8}([^<> \t][^<>]{0,199})>")
_TAG: Final = re.compile(r"</?[A-Za-z0-9][^<>]{0,200}>|\{\\[^{}]{0,200}\}")
_SOUND: Final = re.compile(r"\[[^\[\]]{0,200}\]|[♩♪♫♬]")
_WHOLLY_SOUND: Final = re.compile(r"\s*(?:\([^()]*\)|\*[^*]*\*)\s*")
_TURN: Final = re.compile(r"^\s*(?:-|–|>>+|&gt;&gt;)\s*(?=\S)")  # noqa: RUF001 - subtitles use the en dash
_LONG_REFERENCE: Final = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{7,});?")
"""Beyond every character. `html.unescape` would make a number of all these digits first."""
_BLOCKS: Final = ("NOTE", "STYLE", "REGION")
_FLASH_MS: Final = 60
"""Captions that scroll repeat their last line in a cue this short."""


class TextError(Exception):
    """A text that cannot be used, with a reason code and a sentence for its owner."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class TranscriptError(TextError):
    """A transcript that cannot be used."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one place in a transcript."""

    line: int
    """Counted from 1."""
    code: str
    sentence: str


@dataclass(frozen=True)
class Cue:
    """One timed line of speech. Times in whole milliseconds, so that sums are exact."""

    start_ms: int
    end_ms: int
    text: str
    speaker: str | None
    line: int
    """Where its times stand, counted from 1."""


def decoded(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with their mark.

    Raises:
        TranscriptError: in another encoding, or no text at all. Guessing would put wrong letters into a model.
    """
    mark, encoding = next((known for known in _BOMS if data.startswith(known[0])), (b"", _unmarked(data)))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TranscriptError(
            "unreadable_transcript",
            f"The transcript is not UTF-8 (byte 0x{error.object[error.start]:02x} in line {line}). Save it as UTF-8.",
        ) from error
    if any(unicodedata.category(letter) == "Cc" and letter not in "\t\n\r\f\v\x1c\x85" for letter in set(text)):
        raise TranscriptError("unreadable_transcript", "The transcript is not a text file.")
    return text


def _unmarked(data: bytes) -> str:
    """UTF-16 without its mark shows in the zero bytes of its Latin letters and line ends."""
    head = data[:4096]
    if len(head) % 2 == 0 and head.count(0) > len(head) // 5:
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    return "utf-8"


def tidy(text: str, longest: int = LONGEST_UTTERANCE) -> str:
    """One line, composed letters, single spaces.

    Args:
        text: one utterance, or a name.
        longest: characters that may be left when its blanks are single.

    Raises:
        TextTooLong: more are left.
    """
    return normalized(" ".join(text.split()), "NFC", longest)


def utterance(data: bytes) -> str:
    """The one utterance of a .txt file.

    Raises:
        TranscriptError: unreadable, without a word, or longer than one utterance.
    """
    try:
        text = tidy(decoded(data))
    except TextTooLong as error:
        raise TranscriptError("transcript_too_long", too_long_to_say(error)) from None
    if not has_words(text):
        raise TranscriptError("empty_transcript", "The transcript has no words.")
    return text


def too_long_to_say(error: TextTooLong) -> str:
    """The sentence for the owner of a text that is no single utterance."""
    return (
        f"The transcript has {error.length:,} characters; one utterance has at most {error.longest:,}. "
        "Cut recording and transcript into pieces of at most 30 s, or give a .vtt or .srt with times."
    )


def has_words(text: str) -> bool:
    """Whether anything is said: a letter or a number somewhere."""
    return any(letter.isalnum() for letter in text)


def cues_of(data: bytes) -> tuple[list[Cue], list[Fault]]:
    """The cues of a .vtt or .srt file in the order of their times, and what is wrong with some.

    Both formats are read alike and forgivingly, as people and programs mix them.

    Raises:
        TranscriptError: no text, or no cue in it.
    """
    text = decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    cues: list[Cue] = []
    faults: list[Fault] = []
    last_lines: list[str] = []
    last_end_ms = -1
    for number, timing, lines in _blocks(text.split("\n")):
        if len(cues) + len(faults) >= MOST_CUES:
            raise TranscriptError("transcript_too_large", f"The transcript has more than {MOST_CUES:,} cues.")
        match = _TIMING.match(timing[:_LONGEST_TIMING])
        if match is None:
            faults.append(Fault(number, "bad_cue", f"The times in line {number} cannot be read."))
            continue
        start_ms, end_ms = _milliseconds(match.groups()[:4]), _milliseconds(match.groups()[4:])
        if end_ms <= start_ms:
            faults.append(Fault(number, "bad_cue", f"The cue in line {number} ends before it begins."))
            continue
        shown = [line for line in lines if line.strip()]
        fresh = (
            _without_repeat(shown, last_lines, flashes=end_ms - start_ms <= _FLASH_MS)
            if (start_ms <= last_end_ms + _FLASH_MS)
            else shown
        )
        last_lines, last_end_ms = shown, end_ms
        try:
            spoken, speaker = _spoken(fresh)
        except TextTooLong as error:
            sentence = f"The cue in line {number} has {error.length:,} characters; at most {error.longest:,} are read."
            faults.append(Fault(number, "transcript_too_long", sentence))
            continue
        if has_words(spoken):
            cues.append(Cue(start_ms, end_ms, spoken, speaker, number))
    if not cues and not faults:
        raise TranscriptError("empty_transcript", "There are no cues with words in the transcript.")
    cues.sort(key=lambda cue: (cue.start_ms, cue.end_ms, cue.line))
    return cues, faults


def _blocks(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, timing line and text lines of each cue."""
    at = 0
    while at < len(lines):
        if lines[at].startswith(_BLOCKS) and "-->" not in lines[at]:
            while at < len(lines) and lines[at].strip():
                at += 1
        elif "-->" in lines[at]:
            timing = at
            at += 1
            while at < len(lines) and lines[at].strip() and "-->" not in lines[at]:
                at += 1
            end = at
            if at < len(lines) and "-->" in lines[at] and lines[at - 1].strip().isdigit():
                end -= 1  # the next cue's number, where the empty line between is missing
            yield timing + 1, lines[timing], lines[timing + 1 : max(end, timing + 1)]
        else:
            at += 1


def _milliseconds(groups: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, fraction = groups
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole * 1000 + int((fraction or "0").ljust(3, "0"))


def _without_repeat(lines: list[str], before: list[str], *, flashes: bool) -> list[str]:
    """Scrolling captions show the line before once more; it was said once."""
    repeats = bool(lines and before) and lines[0].strip() == before[-1].strip()
    return lines[1:] if repeats and (flashes or len(lines) > 1) else lines


def _spoken(lines: list[str]) -> tuple[str, str | None]:
    """What is said in a cue, without mark-up and descriptions of sounds, and by whom if by one.

    Raises:
        TextTooLong: nobody says that much in a cue.
    """
    written = sum(map(len, lines))
    if written > LONGEST_CUE:
        raise TextTooLong(written, LONGEST_CUE)
    marked = " ".join(_TURN.sub("", line) for line in lines)
    voices = {tidy(_unescaped(name)) for name in _VOICE.findall(marked)}
    text = _unescaped(_TAG.sub("", _VOICE.sub("", marked)))
    text = tidy(_SOUND.sub(" ", text))
    if _WHOLLY_SOUND.fullmatch(text):
        text = ""
    return text, voices.pop() if len(voices) == 1 else None


def _unescaped(text: str) -> str:
    """HTML's character references as characters; a number beyond all of them as the sign for none."""
    return html.unescape(_LONG_REFERENCE.sub("\ufffd", text))
