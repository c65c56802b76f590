"""How long a recording says it is, from its headers alone: nothing is decoded, and only bounded parts are read.

What a header claims serves limits and quotas, and tells a customer at once that a file is no audio. It is believed
within what its bytes can hold: each format has a least and a most of bytes a second that no encoder leaves, silence and
pictures included. The length that decoding finds replaces it with the first run.
"""

# ruff: noqa: PLR2004 - offsets and masks are the formats' own

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_WINDOW: Final = 64 * 1024
"""Bytes looked at in one place."""
_LARGEST_MOOV: Final = 16 << 20
_MOST_BOXES: Final = 1_000
_MOST_FRAMES: Final = 4_000
_MOST_TRIES: Final = 1_000
"""Places that look like the head of a frame; by chance there are ten in the bytes that are looked at."""
_UNKNOWN_SIZE: Final = 0xFFFF_FFFF
_OPUS_RATE: Final = 48_000
_MOST_PAGES: Final = 4_000
_SLACK_S: Final = 1.0
"""What a header may be wrong by: padding, and a frame at each end."""
_SLACK_BYTES: Final = 64
_LOWEST_RATE: Final = 1_000
_HIGHEST_RATE: Final = 768_000
_MOST_CHANNELS: Final = 16
"""Samples a second and channels that speech has; the trainer reads no others."""

# Bytes a second, with room on both sides. Silence is what takes least: a frame of it still has a header.
_FLAC_FRAME: Final = 8
_OPUS: Final = (8.0, 64_000.0 * _MOST_CHANNELS)
_VORBIS: Final = (2.0, 64_000.0 * _MOST_CHANNELS)
_MP3: Final = (500.0, 80_000.0)
_MP3_TAGS: Final = 1 << 20
"""Behind the sound: lyrics, pictures."""
_AAC: Final = (2.0, 1.25e6)
_ALAC: Final = (2.0, 5e6)
_VIDEO: Final = (2.0, 32e6)
"""Of a film, whose sound is the least part."""


class NotAudio(Exception):  # noqa: N818 - a verdict
    """The headers are not those of audio; the text says why, for the customer."""


@dataclass(frozen=True)
class _Claim:
    """What a header says, and what can be true of it.

    Attributes:
        seconds: of sound.
        sound_bytes: that hold it, tags and tables left out as far as the format tells them apart.
        slowest: bytes a second, at least.
        fastest: bytes a second, at most; None where the length was counted from the bytes.
    """

    seconds: float
    sound_bytes: int = 0
    slowest: float = 0.0
    fastest: float | None = None


def duration_s(path: Path) -> float:
    """Seconds of audio in a wav, flac, mp3, m4a, aac, ogg or opus file, whatever its name.

    Raises:
        NotAudio: none of these, damaged, without a single sample, or with a length that its bytes cannot have.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _after_id3(file)
        file.seek(start)
        head = file.read(64)
        try:
            claim = _reader(head)(file, start, size)
        except (IndexError, ValueError, ZeroDivisionError) as error:
            raise NotAudio("The header of the audio is damaged.") from error
    if not 0 < claim.seconds < 10**9:
        raise NotAudio("There is no sound in the file.")
    _check(claim)
    return claim.seconds


def _check(claim: _Claim) -> None:
    """Refuse what no encoder writes."""
    holds = f"it holds {claim.sound_bytes:,} bytes of sound"
    wrong = "Its header is wrong: save the recording again with another program."
    if claim.seconds * claim.slowest > claim.sound_bytes + _SLACK_BYTES:
        raise NotAudio(f"The recording says it lasts {_spoken(claim.seconds)}, but {holds}, too few. {wrong}")
    if claim.fastest is not None and claim.sound_bytes > (claim.seconds + _SLACK_S) * claim.fastest:
        raise NotAudio(f"The recording says it lasts {_spoken(claim.seconds)}, but {holds}, too many. {wrong}")


def _spoken(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def _reader(head: bytes) -> Callable[[BinaryIO, int, int], _Claim]:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wav
    if head[:4] == b"fLaC":
        return _flac
    if head[:4] == b"OggS":
        return _ogg
    if head[4:8] == b"ftyp":
        return _mp4
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _adts
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return _mp3
    raise NotAudio("The file is not audio of a known kind (wav, flac, mp3, m4a, aac, ogg, opus).")


def _after_id3(file: BinaryIO) -> int:
    head = file.read(10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
    return 10 + size


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _check_kind(rate: int, channels: int) -> None:
    if not (_LOWEST_RATE <= rate <= _HIGHEST_RATE and 1 <= channels <= _MOST_CHANNELS):
        raise NotAudio(f"The recording says it has {channels} channels of {rate} samples a second: that is no speech.")


def _wav_bytes_per_s(form: bytes) -> int:
    """From the samples' size; of compressed sound, whose blocks hold many samples, as the header says."""
    kind, channels, rate = _little(form[:2]), _little(form[2:4]), _little(form[4:8])
    _check_kind(rate, channels)
    if kind in (1, 3, 6, 7, 0xFFFE):
        return rate * _little(form[12:14])
    told = _little(form[8:12])
    if not rate * channels <= told * 32 <= rate * channels * 256:
        raise ValueError("no compression of sound is like that")
    return told


def _wav(file: BinaryIO, start: int, size: int) -> _Claim:
    position = start + 12
    bytes_per_s = 0
    for _ in range(_MOST_BOXES):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            break
        length = _little(head[4:])
        if head[:4] == b"fmt ":
            bytes_per_s = _wav_bytes_per_s(file.read(16))
        elif head[:4] == b"data":
            there = size - position - 8
            return _Claim((there if length in (0, _UNKNOWN_SIZE) else min(length, there)) / bytes_per_s)
        position += 8 + length + length % 2
    raise NotAudio("The wav file has no sound data.")


def _flac(file: BinaryIO, start: int, size: int) -> _Claim:
    file.seek(start + 8)
    info = file.read(34)
    if len(info) < 34:
        raise NotAudio("The flac file breaks off in its header.")
    samples = _big(info[13:18]) & 0xF_FFFF_FFFF
    if samples == 0:
        samples = _flac_samples_at_end(file, size, info)
    return _flac_claim(info, samples, size - _flac_sound(file, start))


def _flac_claim(info: bytes, samples: int, sound_bytes: int) -> _Claim:
    """The blocks that hold so many samples have a header each, and at most every sample as it is."""
    rate, channels, bits = _big(info[10:13]) >> 4, (info[12] >> 1 & 7) + 1, ((info[12] & 1) << 4 | info[13] >> 4) + 1
    _check_kind(rate, channels)
    block = max(16, _big(info[2:4]))
    return _Claim(samples / rate, sound_bytes, rate / block * _FLAC_FRAME, 1.5 * rate * channels * bits / 8 + 1_000)


def _flac_sound(file: BinaryIO, start: int) -> int:
    """Where the blocks of sound begin: behind all metadata, pictures too."""
    position = start + 4
    for _ in range(_MOST_BOXES):
        file.seek(position)
        head = file.read(4)
        position += 4 + _big(head[1:4])
        if len(head) < 4 or head[0] & 0x80:
            return position
    raise ValueError("no end of metadata")


def _flac_samples_at_end(file: BinaryIO, size: int, info: bytes) -> int:
    """A stream that was written without knowing its end: the last frame's number tells."""
    file.seek(max(0, size - 4 * _WINDOW))
    tail = file.read()
    block = _big(info[2:4])
    at = len(tail)
    tries = 0
    while (at := tail.rfind(b"\xff", 0, at)) >= 0 and tries < _MOST_TRIES:
        frame = tail[at : at + 16]
        if len(frame) == 16 and frame[1] & 0xFE == 0xF8:
            tries += 1
            number, end = _utf8_number(frame, 4)
            end += {6: 1, 7: 2}.get(frame[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
            if number is not None and _crc8(frame[:end]) == frame[end]:
                return number if frame[1] & 1 else (number + 1) * block
    raise NotAudio("The flac file does not say how long it is.")


def _utf8_number(data: bytes, at: int) -> tuple[int | None, int]:
    first = data[at]
    if first < 0x80:
        return first, at + 1
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7 or at + length > len(data):
        return None, at
    number = first & (0x7F >> length)
    for byte in data[at + 1 : at + length]:
        number = number << 6 | byte & 0x3F
    return number, at + length


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


def _ogg(file: BinaryIO, start: int, size: int) -> _Claim:
    file.seek(start)
    head = file.read(512)
    body = head[27 + head[26] :]
    if body[:8] == b"OpusHead":
        rate, skip, bounds = _OPUS_RATE, _little(body[10:12]), _OPUS
    elif body[:7] == b"\x01vorbis":
        rate, skip, bounds = _little(body[12:16]), 0, _VORBIS
    elif body[:5] == b"\x7fFLAC":
        rate, skip = _big(body[27:30]) >> 4, 0
        flac = _flac_claim(body[17:51], 0, 0)
        bounds = flac.slowest, flac.fastest or 0.0
    else:
        raise NotAudio("The ogg file holds no audio of a known kind.")
    serial = head[14:18]
    file.seek(max(start, size - 2 * _WINDOW))
    tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"OggS", 0, at)) >= 0:
        granule = _little(tail[at + 6 : at + 14])
        if tail[at + 14 : at + 18] == serial and granule != 2**64 - 1:
            return _Claim(max(0, granule - skip) / rate, size - _ogg_sound(file, start), *bounds)
    raise NotAudio("The ogg file breaks off.")


def _ogg_sound(file: BinaryIO, start: int) -> int:
    """Where the first page of sound begins: those before it hold names and pictures."""
    position = start
    for _ in range(_MOST_PAGES):
        file.seek(position)
        head = file.read(27 + 255)
        if len(head) < 27 or head[:4] != b"OggS" or _little(head[6:14]) not in (0, 2**64 - 1):
            break
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return position


def _mp4(file: BinaryIO, start: int, size: int) -> _Claim:
    position, media, moov = start, 0, b""
    for _ in range(_MOST_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            break
        length, skip = _big(head[:4]), 8
        if length == 1:
            length, skip = _big(head[8:16]), 16
        elif length == 0:
            length = size - position
        if length < skip:
            break
        if head[4:8] == b"mdat":
            media += min(length, size - position) - skip
        elif head[4:8] == b"moov" and not moov:
            if length > _LARGEST_MOOV or position + length > size:
                break
            file.seek(position)
            moov = file.read(length)
        position += length
    if not moov:
        raise NotAudio("The m4a file breaks off, or has no index.")
    bounds = _VIDEO if b"vide" in moov else _ALAC if b"alac" in moov or b"fLaC" in moov else _AAC
    return _Claim(_moov(moov), media, *bounds)


def _moov(moov: bytes) -> float:
    if b"soun" not in moov:
        raise NotAudio("The file has no sound track.")
    at = moov.index(b"mvhd") + 4
    if moov[at] == 0:
        scale, length = _big(moov[at + 12 : at + 16]), _big(moov[at + 16 : at + 20])
    else:
        scale, length = _big(moov[at + 20 : at + 24]), _big(moov[at + 24 : at + 32])
    if length == 0 and (mehd := moov.find(b"mehd")) >= 0:  # fragments: the length stands elsewhere
        wide = 8 if moov[mehd + 4] else 4
        length = _big(moov[mehd + 8 : mehd + 8 + wide])
    return length / scale


_MP3_KBPS: Final = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits a second by version (3: MPEG 1; 2: MPEG 2 and 2.5, whose layers II and III share a row) and layer bits."""
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mp3_frame(head: bytes) -> tuple[int, int, int]:
    """Bytes, samples and sample rate of the frame that begins here.

    Raises:
        ValueError: none does.
    """
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or version == 1 or layer == 0 or bitrate in (0, 15) or rate_index == 3:
        raise ValueError("no frame")
    kbps = _MP3_KBPS[(3, layer) if version == 3 else (2, 3 if layer == 3 else 2)][bitrate - 1]
    rate = _MP3_RATES[version][rate_index]
    if layer == 3:
        return (12 * kbps * 1000 // rate + padding) * 4, 384, rate
    samples = 1152 if layer == 2 or version == 3 else 576
    return samples // 8 * kbps * 1000 // rate + padding, samples, rate


def _mp3(file: BinaryIO, start: int, size: int) -> _Claim:
    file.seek(start)
    window = file.read(_WINDOW)
    first, samples, rate = _mp3_frame(window)
    for mark in (b"Xing", b"Info"):
        at = window.find(mark, 0, first)
        if at >= 0 and window[at + 7] & 1:
            return _mp3_claim(_big(window[at + 8 : at + 12]) * samples / rate, size - start)
    at = window.find(b"VBRI", 0, first)
    if at >= 0:
        return _mp3_claim(_big(window[at + 14 : at + 18]) * samples / rate, size - start)
    return _Claim(_extrapolated(window, size - start, _mp3_frame))


def _mp3_claim(seconds: float, size: int) -> _Claim:
    slowest, fastest = _MP3
    return _Claim(seconds, size, slowest, fastest + _MP3_TAGS / (seconds + _SLACK_S))


_AAC_RATES: Final = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)


def _adts_frame(head: bytes) -> tuple[int, int, int]:
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or length < 7:
        raise ValueError("no frame")
    return length, 1024 * ((head[6] & 3) + 1), _AAC_RATES[head[2] >> 2 & 15]


def _adts(file: BinaryIO, start: int, size: int) -> _Claim:
    file.seek(start)
    return _Claim(_extrapolated(file.read(4 * _WINDOW), size - start, _adts_frame))


def _extrapolated(window: bytes, size: int, frame: Callable[[bytes], tuple[int, int, int]]) -> float:
    """Seconds of the frames seen, stretched to the whole file.

    Raises:
        NotAudio: not one frame after another.
    """
    at = frames = 0
    seconds = 0.0
    while at + 10 <= len(window) and frames < _MOST_FRAMES:
        try:
            length, samples, rate = frame(window[at : at + 10])
        except ValueError:
            break
        at += length
        frames += 1
        seconds += samples / rate
    if frames < 2 and at < size:
        raise NotAudio("The file is not audio of a known kind (wav, flac, mp3, m4a, aac, ogg, opus).")
    return seconds * size / max(at, 1) if at < size else seconds
