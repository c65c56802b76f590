"""What becomes of one candidate segment, and the sentence its owner reads."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.recipes import WhisperParameters
from schemas.splits import split_text_key
from schemas.steps import ManifestRow
from worker.trainer.audio import FULL_SCALE, SAMPLE_RATE, Samples

SILENT_RMS: Final = 10 ** (-60 / 20) * FULL_SCALE
"""Root mean square below -60 dB of full scale: nothing was said."""
CLIPPED_SHARE: Final = 0.02
"""More than this share of samples at full scale: the microphone was overdriven beyond use."""
CLIPPED_AT: Final = FULL_SCALE - 8
_SLACK_S: Final = 0.5
_SLACK: Final = 0.05
"""A segment may end this much behind its recording, in seconds or as a part of its length, as times are rounded."""


@dataclass(frozen=True)
class Refusal:
    """Why a segment is not trained on."""

    code: str
    sentence: str


def before_decoding(row: ManifestRow, parameters: WhisperParameters) -> Refusal | None:
    """What can be told from the manifest alone."""
    if not split_text_key(row.text):
        return Refusal("empty_transcript", "The transcript has no words.")
    if row.duration_s is not None and row.duration_s < parameters.shortest_segment_s:
        return _too_short(row.duration_s, parameters)
    if row.duration_s is not None and row.duration_s > parameters.longest_segment_s:
        return Refusal(
            "too_long",
            f"The segment lasts {row.duration_s:.0f} s; at most {parameters.longest_segment_s:.0f} s can be used.",
        )
    return None


def too_long_recording(row: ManifestRow, duration_s: float, parameters: WhisperParameters) -> Refusal | None:
    """A whole recording must fit one window: without times we cannot know which words are where."""
    if row.duration_s is not None or duration_s <= parameters.longest_segment_s:
        return None
    limit = f"{parameters.longest_segment_s:.0f} s"
    if row.source == "txt":
        return Refusal(
            "untimed_long_recording",
            f"The recording lasts {_length(duration_s)} and its transcript has no times. "
            f"Give a .vtt or .srt, or cut it into pieces of at most {limit}.",
        )
    return Refusal("too_long", f"The recording lasts {_length(duration_s)}; at most {limit} can be used.")


def after_decoding(row: ManifestRow, samples: Samples, parameters: WhisperParameters) -> Refusal | None:
    """What only the sound can tell."""
    seconds = len(samples) / SAMPLE_RATE
    if row.duration_s is not None and seconds < row.duration_s - _slack_s(row.duration_s):
        return Refusal("too_short", f"The recording ends before the segment does ({seconds:.1f} s are there).")
    if seconds < parameters.shortest_segment_s:
        return _too_short(seconds, parameters)
    if len(row.text.strip()) > parameters.fastest_speech_cps * seconds:
        return Refusal(
            "transcript_too_long_for_audio",
            f"{len(row.text.split())} words in {seconds:.1f} s: the transcript cannot belong to this recording.",
        )
    sound = samples.astype(np.float32)
    if np.dot(sound, sound) < SILENT_RMS**2 * len(samples):
        return Refusal("silent", "Nothing can be heard in the recording.")
    if (clipped := _clipped_share(samples)) > CLIPPED_SHARE:
        return Refusal("clipped", f"The recording is overdriven: {clipped:.0%} of it is cut off at full volume.")
    return None


def _slack_s(duration_s: float) -> float:
    """What of a segment may be missing, but never half of it: its words would be missing as well."""
    return min(max(_SLACK_S, _SLACK * duration_s), 0.5 * duration_s)


def _clipped_share(samples: Samples) -> float:
    if samples.max() < CLIPPED_AT and samples.min() > -CLIPPED_AT:
        return 0.0  # as nearly always: nothing to count
    return float(np.count_nonzero((samples >= CLIPPED_AT) | (samples <= -CLIPPED_AT)) / len(samples))


def fingerprint(samples: Samples) -> bytes:
    """What equal sound shares, and other sound hardly ever: length, the sum of all samples, and every 32nd of them.

    Digesting every byte would take as long as a tenth of decoding it.
    """
    fours = len(samples) // 4 * 4
    whole = samples[:fours].view(np.int64).sum()  # four samples at a time; wraps round
    told = f"{len(samples)} {whole} ".encode() + samples[fours:].tobytes()
    return hashlib.blake2b(samples[::32].tobytes(), digest_size=16, key=told).digest()


def _too_short(seconds: float, parameters: WhisperParameters) -> Refusal:
    return Refusal("too_short", f"It lasts {seconds:.2f} s; at least {parameters.shortest_segment_s:.1f} s are needed.")


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
