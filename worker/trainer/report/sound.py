"""The recordings of a report: small enough to travel inside the page."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import soundfile

from worker.trainer.audio import SAMPLE_RATE
from worker.trainer.dataset import Dataset, Utterance
from worker.trainer.report.compared import change
from worker.trainer.segments import cores

MOST_BYTES: Final = 8_000_000
"""Of all clips of a page together, as they stand in it (base64)."""
MOST_CLIPS: Final = 160
_BYTES_A_SECOND: Final = 4_200
"""24 kbit/s in base64, and a little for frames that are not full."""
_BYTES_A_CLIP: Final = 1_500
_TYPE: Final = "data:audio/mpeg;base64,"


def clips(dataset: Dataset, sentences: Sequence[dict[str, Any]], most_bytes: int = MOST_BYTES) -> dict[int, str]:
    """Data addresses of recordings by row; those of the most changed sentences where not all have a place."""
    utterances = {one.row: one for one in dataset.of("test")}
    told = [one for one in sentences if one["set"] == "test" and one["row"] in utterances]
    chosen: list[Utterance] = []
    left = most_bytes
    for sentence in sorted(told, key=lambda one: (-change(one), one["row"]))[:MOST_CLIPS]:
        one = utterances[sentence["row"]]
        left -= round(_BYTES_A_CLIP + _BYTES_A_SECOND * one.seconds)
        if left < 0:
            break
        chosen.append(one)

    def address(one: Utterance) -> str:
        return _TYPE + base64.b64encode(encoded(dataset.sound([one], one.seconds)[0].numpy())).decode()

    with ThreadPoolExecutor(cores()) as threads:  # the encoder lets go of the interpreter
        return dict(zip((one.row for one in chosen), threads.map(address, chosen), strict=True))


def encoded(samples: Any) -> bytes:
    """MP3 of 16 kHz mono float samples: 3 kB a second, and no browser that cannot play it."""
    file = io.BytesIO()
    soundfile.write(
        file, samples, SAMPLE_RATE, "MPEG_LAYER_III", format="MP3", bitrate_mode="CONSTANT", compression_level=0.9
    )
    return file.getvalue()
