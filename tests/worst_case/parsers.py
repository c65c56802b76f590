"""Every parser of the API and of the worker that meets what strangers wrote, and inputs in which to look."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import Request

from schemas.api import ModelWanted, UploadWanted, WebhookWanted
from schemas.messages import REQUEST_TYPE
from schemas.splits import split_text_key
from tests.worst_case.oracle import MOST_PER_KB
from worker.api import bodies, outward, present
from worker.api.audio_header import duration_s
from worker.api.bodies import parse_as, parse_json, query_choice, query_int, query_text, traceparent
from worker.api.incoming import Incoming, MultipartParser, _boundary, _Spool
from worker.api.models import new_key
from worker.api.runs import _range
from worker.api.settings import ApiSettings
from worker.data import text_tasks
from worker.data.manifest_lines import LineError
from worker.domain.data import DataItem, clean_name, kind_of, stem_of
from worker.intake.handler import Properties, understand
from worker.launchers.event_stream import EventStream
from worker.launchers.exchange.interface import EndFacts, Order, Question
from worker.launchers.exchange.interface import understood as exchange_understood
from worker.log import Redaction
from worker.pipeline.audio_names import AudioNames

if TYPE_CHECKING:
    from collections.abc import Callable

KB, MB = 1 << 10, 1 << 20
HEADER = 64 * KB
"""Bytes of a header, at most."""


@dataclass(frozen=True)
class Parser:
    """One parser, as strangers reach it."""

    parse: Callable[[bytes], object]
    tokens: tuple[str, ...]
    """What its grammar is made of: pumps are made of these, and of what is in every text."""
    largest: int
    """Bytes that get this far."""
    whole: Callable[[str], bytes] = str.encode
    """The text around which there is a valid input."""
    most_per_kb: float = MOST_PER_KB
    """Times of the calibration loop."""


EVERYWHERE = (
    "a", "é", "1", "0", " ", "\t", "\n", "\r", ".", ",", ":", ";", "-", "_", "/", "\\", "<", ">", "&", "#", "(", ")",
    "[", "]", "{", "}", "*", "'", '"', "=", "%", "+", "\0", "\u0301", "\u0316", "\u0316\u0301", "\u0301\u0316", "\u0344", "\u0f73", "\uff9e", "\ufdfa", "が", "🩺",
)  # fmt: skip
_CUE = "00:00:01.000 --> 00:00:02.000"
CUES = (
    "<v.", "<v ", "<v", "</", "<c.", "&#9", "&#x", "&amp", "&", ";", "-->", "--", _CUE, "00:", "000.", "{\\", "[", "♪", "NOTE",
    "STYLE", "- ", ">>", "&gt;&gt;", "WEBVTT", "\n\n", "\u2013",
)  # fmt: skip
JSON = ('{"', '":', "[", "{", "]", "}", ",", "1e9", "\\u0301", "\\ud800", '"a":1,', "null", "9999999999", '"id":')
LINE = ('"text":"', '"audio_filepath":"', '"split":', '"speaker":', "\\u0316\\u0301", "a/", "../", "\\\\")
NAMES = ("./", "../", "a/", "/", "\\", ".wav", ".txt", ".vtt", ". ")
HEADERS = (";", '="', "q=", "bytes=", "W/", "form-data", "filename", "name", "*", "application/", "+json")
ADDRESS = ("https://", "//", "@", ":", "[", "]", "%25", "xn--", "?", "#", "127.0.0.1", "::", "ffff:", "0x")
_EVENTS = ('{"event":"progress"', '{"event":"metric"', '"percent":', '"value":', "\n", '{"event":"result","figures":')


def _timed(data: bytes) -> object:
    return list(text_tasks.transcript([data], timed=True, longest_s=30.0))


def _short_cues(text: str) -> bytes:
    bodies = (text[at : at + 15_000] for at in range(0, len(text), 15_000))
    return "\n\n".join(["WEBVTT", *(f"{_CUE}\n{body}" for body in bodies)]).encode()


def _plain(data: bytes) -> object:
    return list(text_tasks.transcript([data], timed=False, longest_s=30.0))


def _manifest(data: bytes) -> object:
    return list(text_tasks.manifest([data]))


def _in_line(field: str) -> Callable[[str], bytes]:
    def whole(text: str) -> bytes:
        return json.dumps({"audio_filepath": "a.wav", "text": "hello", field: text}, ensure_ascii=False).encode()

    return whole


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def _item(number: int, name: str) -> DataItem:
    kind = kind_of(name)
    assert kind is not None
    return DataItem(number, name, stem_of(name), kind, 1, "0" * 64, f"data/{number}")


_MANY_NAMES = AudioNames(_item(number, f"{'a/' * (number % 90)}{number % 7}/a.wav") for number in range(3_000))


def _find_each(data: bytes) -> None:
    """As a manifest does it: one look for each line, of which the shortest have some forty letters and the longest 4,096."""
    text = data.decode("utf-8", "replace")
    for letters in (40, 4_096):
        for start in range(0, len(text), letters):
            with contextlib.suppress(LineError):
                _MANY_NAMES.find(text[start : start + letters], "train.jsonl")


def _json_as(model: type) -> Callable[[bytes], object]:
    return lambda data: parse_as(parse_json(data), model)


def _fields(text: str) -> bytes:
    """An object of many fields that nobody knows, with some of the text in each."""
    return json.dumps({f"{number}{text[:9]}": text[9:30] for number in range(max(1, len(text) // 40))}).encode()


def _request(headers: list[tuple[bytes, bytes]] | None = None, query: bytes = b"") -> Request:
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers or [], "query_string": query})


def _query(data: bytes) -> object:
    request = _request(query=data)
    found = []
    for look in (
        lambda: query_int(request, "offset", 0, 0, 10), lambda: query_text(request, "q", 200),
        lambda: query_choice(request, "sort", "id", ("id", "name")),
    ):  # fmt: skip
        try:
            found.append(look())
        except Exception as error:  # noqa: BLE001 - the others, too
            found.append(error)
    return found, QueryParams(data)


def _multipart(data: bytes) -> object:
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        spool = _Spool(Path(folder), _SETTINGS, Incoming())
        parser = MultipartParser(b"x", spool.callbacks())  # type: ignore[arg-type]
        try:
            for start in range(0, len(data), 64 * KB):
                parser.write(data[start : start + 64 * KB])
            parser.finalize()
        finally:
            spool.close()
        return spool


_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files cost no more than the parser: a disk has its own times."""
_SETTINGS = ApiSettings(database_url="postgresql://nowhere")  # type: ignore[arg-type]


def _part(text: str) -> bytes:
    name = text.replace("\r", "").replace("\n", "")
    part = f'--x\r\nContent-Disposition: form-data; name="f"; filename="{name[:3_000]}"\r\n\r\nhello\r\n'
    return (part * max(1, len(text) // 3_000)).encode() + b"--x--\r\n"


def _many_parts(text: str) -> bytes:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="f"; filename="{number}{text[:20]!a}.txt"\r\n\r\nx\r\n'
        for number in range(max(1, len(text) // 100))
    ]
    return "".join(parts).encode() + b"--x--\r\n"


def _audio(head: bytes) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        with tempfile.NamedTemporaryFile(dir=_MEMORY) as file:
            file.write(head + data)
            file.flush()
            return duration_s(Path(file.name))

    return parse


def _events(data: bytes) -> object:
    stream = EventStream()
    for start in range(0, len(data), 4 * KB):
        stream.push(data[start : start + 4 * KB])
        stream._waiting.clear()
    return stream


def _message(data: bytes) -> object:
    return understand(data, Properties(type=REQUEST_TYPE))


def _boundary_of(data: bytes) -> object:
    return _boundary(_request([(b"content-type", b"multipart/form-data; " + data)]))


PARSERS: dict[str, Parser] = {
    "plain transcript": Parser(_plain, (), 256 * KB),
    "timed transcript": Parser(_timed, CUES, 256 * KB, lambda text: f"WEBVTT\n\n{text}".encode()),
    "cue": Parser(_timed, CUES, 256 * KB, lambda text: f"WEBVTT\n\n{_CUE}\n{text}".encode()),
    "short cues": Parser(_timed, CUES, 256 * KB, _short_cues),
    "first look at a transcript": Parser(
        lambda data: list(text_tasks.check_transcript([data], timed=True)), CUES, 256 * KB
    ),
    "manifest": Parser(_manifest, JSON + LINE, 256 * KB),
    "manifest line, text": Parser(_manifest, JSON, 256 * KB, _in_line("text")),
    "manifest line, path": Parser(_manifest, NAMES, 256 * KB, _in_line("audio_filepath")),
    "manifest line, speaker": Parser(_manifest, JSON, 256 * KB, _in_line("speaker")),
    "names in a manifest": Parser(lambda data: list(text_tasks.audio_names([data])), JSON + LINE, 256 * KB),
    "name in a manifest": Parser(
        lambda data: list(text_tasks.audio_names([data])), NAMES, 256 * KB, _in_line("audio_filepath")
    ),
    "file name": Parser(_text(clean_name), NAMES, 16 * KB),
    "stem": Parser(_text(lambda text: stem_of(text[:1_600])), NAMES, 16 * KB),
    "recordings by name": Parser(_find_each, ("a/", "a.wav", "/a.wav", "../", "0/a.wav", "a/a/a/a/"), 64 * KB),
    "text key of a split": Parser(_text(lambda text: split_text_key(text[:10_000])), (), 64 * KB),
    "model key": Parser(_text(lambda text: new_key(text[:200])), (), 16 * KB),
    "body of a model": Parser(_json_as(ModelWanted), JSON, bodies.LARGEST_JSON_BYTES),
    "fields of a body": Parser(_json_as(ModelWanted), JSON, bodies.LARGEST_JSON_BYTES, _fields),
    "name of a model": Parser(
        _json_as(ModelWanted),
        (),
        bodies.LARGEST_JSON_BYTES,
        lambda text: json.dumps({"name": text, "language_id": 1, "organization_id": 1}, ensure_ascii=False).encode(),
    ),
    "body of an upload": Parser(_json_as(UploadWanted), JSON, bodies.LARGEST_JSON_BYTES),
    "body of a webhook": Parser(_json_as(WebhookWanted), JSON, bodies.LARGEST_JSON_BYTES),
    "webhook address": Parser(
        _text(lambda text: outward.parse(f"https://{text[:2_000]}", private=False)), ADDRESS, 16 * KB
    ),
    "query": Parser(
        _query,
        ("q=", "&", "offset=", "sort=", "%C3", "%", "=", ";"),
        HEADER,
        lambda text: quote(text, safe="&=%;+").encode(),
    ),
    "known tags": Parser(_text(lambda text: present.matches(text, 'W/"x"')), HEADERS, HEADER),
    "range": Parser(_text(lambda text: _range(text, 1_000)), HEADERS, HEADER),
    "trace context": Parser(lambda data: traceparent(_request([(b"traceparent", data)])), ("00-", "f" * 32), HEADER),
    "media type": Parser(_text(bodies._JSON.fullmatch), HEADERS, HEADER, lambda text: f"application/{text}".encode()),
    "multipart boundary": Parser(_boundary_of, HEADERS, HEADER),
    "multipart body": Parser(_multipart, ("--x\r\n", "\r\n\r\n", *HEADERS, "\r\n--x"), 256 * KB),
    "multipart file name": Parser(_multipart, NAMES, 256 * KB, _part),
    "multipart parts": Parser(_multipart, (), 16 * KB, _many_parts, 10 * MOST_PER_KB),  # each part makes a file
    "wav header": Parser(_audio(b"RIFF\0\0\0\0WAVE"), ("fmt ", "data", "LIST", "\x01\0\0\0", "\0\0\0\0"), 256 * KB),
    "flac header": Parser(
        _audio(b"fLaC" + b"\0" * 38),
        ("\udcff\udcf8", "\udcff", "\0"),
        256 * KB,
        lambda text: text.encode("utf-8", "surrogateescape"),
    ),
    "ogg header": Parser(_audio(b"OggS" + b"\0" * 22 + b"\1\x13OpusHead"), ("OggS", "\0"), 256 * KB),
    "mp4 header": Parser(_audio(b"\0\0\0\x08ftyp"), ("\0\0\0\x08", "free", "moov", "mvhd", "soun"), 256 * KB),
    "message body": Parser(_message, (*JSON, '"run_id":"', '"requested_at":"'), 64 * KB),
    "message run id": Parser(
        _message,
        ("f", "00000000-", "-"),
        64 * KB,
        lambda text: json.dumps({"run_id": text}, ensure_ascii=False).encode(),
    ),
    "message time": Parser(
        _message,
        ("2026-01-01T", "00:00:00", ".0", "Z"),
        64 * KB,
        lambda text: json.dumps({"requested_at": text}, ensure_ascii=False).encode(),
    ),
    "event lines": Parser(_events, JSON + _EVENTS, 256 * KB),
    "order of a step": Parser(lambda data: exchange_understood(Order, data), JSON, 64 * KB),
    "question of a step": Parser(lambda data: exchange_understood(Question, data), JSON, 64 * KB),
    "end of a step": Parser(lambda data: exchange_understood(EndFacts, data), JSON, 64 * KB),
    "log line": Parser(_text(lambda text: Redaction()(None, "", {"url": text})), ("://", "@", "amqp", "?"), 64 * KB),
}
