"""Why a file or segment is not trained on: every reason code, its sentence, and what its owner can do about it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Reason:
    """One reason code."""

    code: str
    sentence: str
    """What is wrong, where no more is known than the code."""
    remedy: str
    """What its owner can do."""
    short: str
    """For a count: ``3 silent, 2 unreadable``."""


_ALL: Final = (
    # Known from names and texts, when a run begins.
    Reason(
        "waiting_for_pair",
        "The other half is not there: audio needs a transcript of the same name, and a transcript its audio.",
        "Upload the missing half under the same name, such as talk.wav and talk.txt.",
        "without their other half",
    ),
    Reason(
        "missing_file",
        "The recording is not there.",
        "Upload the recording that the manifest names, or correct audio_filepath.",
        "missing",
    ),
    Reason(
        "ambiguous_file",
        "More than one recording could be meant.",
        "Write the folder of the recording into audio_filepath as well.",
        "ambiguous",
    ),
    Reason("empty_transcript", "The transcript has no words.", "Write what is said.", "without words"),
    Reason(
        "unreadable_transcript",
        "The transcript cannot be read.",
        "Save it as UTF-8 text (.txt), WebVTT (.vtt) or SubRip (.srt).",
        "with an unreadable transcript",
    ),
    Reason(
        "transcript_too_large",
        "The transcript is too large.",
        "Cut it into several, each beside its own recording.",
        "with too large a transcript",
    ),
    Reason(
        "bad_cue",
        "The times of a cue make no sense.",
        "Correct the cue's times: its end must come after its start.",
        "cues with impossible times",
    ),
    Reason(
        "bad_manifest_line",
        "A line of the manifest cannot be understood.",
        "Write one JSON object a line, with audio_filepath and text.",
        "manifest lines not understood",
    ),
    Reason(
        "superseded",
        "Another file says the same, and better.",
        "Nothing: it is not needed. Remove it, or remove the other one to use this one.",
        "not needed beside another file",
    ),
    Reason(
        "same_stem",
        "Two recordings share a name.",
        "Give every recording a name of its own.",
        "sharing a name with another recording",
    ),
    Reason(
        "duplicate",
        "The same recording is already there.",
        "Nothing: it is used once.",
        "already there",
    ),
    # Known from the sound, when it is prepared.
    Reason(
        "unreadable_audio",
        "The recording cannot be read.",
        "Play it on your own machine; if it plays, convert it to wav or flac and upload it again.",
        "unreadable",
    ),
    Reason("too_short", "It is too short.", "Upload a longer recording.", "too short"),
    Reason(
        "too_long",
        "It is longer than 30 seconds.",
        "Cut it into pieces of at most 30 s, or give a .vtt or .srt with shorter cues.",
        "too long",
    ),
    Reason(
        "transcript_too_long_for_audio",
        "The transcript has more words than anybody can say in that time.",
        "Check that the transcript belongs to this recording.",
        "with a transcript of another recording",
    ),
    Reason(
        "transcript_too_long",
        "The transcript is longer than the model can write at once.",
        "Cut the recording and its transcript into shorter pieces.",
        "with too long a transcript",
    ),
    Reason(
        "untimed_long_recording",
        "The recording is long and its transcript has no times.",
        "Give a .vtt or .srt, or cut it into pieces of at most 30 s.",
        "long and without times",
    ),
    Reason("silent", "Nothing can be heard.", "Record it again.", "silent"),
    Reason(
        "clipped",
        "The recording is overdriven.",
        "Record it again with the microphone turned down.",
        "overdriven",
    ),
    Reason(
        "on_two_sides",
        "The same sentence or recording is in the test data, so it is not trained on.",
        "Nothing; or mark both with the same split.",
        "repeating test data",
    ),
)

REASONS: Final[dict[str, Reason]] = {reason.code: reason for reason in _ALL}


def counted(counts: dict[str, int]) -> str:
    """Counts by reason as words, the commonest first: ``3 silent, 2 unreadable``."""
    told = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count} {REASONS[code].short if code in REASONS else code}" for code, count in told)
