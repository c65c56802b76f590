"""Reading and writing single objects by signed addresses: a few requests over the standard library. Blocks.

No address is ever part of an error's text: it would be a right that lies in a log.
"""

import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Final, Protocol

_TIMEOUT_S: Final = 15.0
"""Without a byte."""
_PIECE: Final = 1 << 20
_LONGEST_COMPLAINT: Final = 2_000
_SMALL_S: Final = 120.0
"""For all of a small answer: one that drips would keep its reader for ever."""


class AddressRefusedError(OSError):
    """The storage does not accept the address, or not any more."""


class AbsentError(OSError):
    """There is no object at the address."""


class GivenUpError(OSError):
    """Nobody waits for it any more."""


def read_small(url: str, limit_bytes: int) -> bytes:
    """A small object.

    Raises:
        AbsentError: there is none.
        AddressRefusedError: see there.
        OSError: the storage does not answer, or with more than ``limit_bytes``.
    """
    with _opened(url) as answer:
        content = _small(answer, limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(f"an object of more than {limit_bytes} bytes")
    return content


class Sink(Protocol):
    """Where the bytes of an object go."""

    have: int
    """So many of its first bytes are there."""

    def write(self, piece: bytes) -> None:
        """Take in the next ones; may raise to end it."""


def read_into(url: str, sink: Sink, size: int) -> None:
    """The bytes of an object that are still missing; what came before an error stays.

    Args:
        url: signed for GET.
        sink: where they go.
        size: bytes of the whole object; more are never taken.

    Raises:
        AbsentError, AddressRefusedError: see there.
        OSError: the storage does not answer, breaks off, or has another size.
    """
    start = sink.have
    if start and start == size:  # all came before it broke off, and no range begins behind the end
        return
    with _opened(url, headers={"Range": f"bytes={start}-"} if start else {}) as answer:
        if start and answer.status != HTTPStatus.PARTIAL_CONTENT:
            _skip(answer, start)
        while sink.have < size:
            piece = answer.read(min(_PIECE, size - sink.have))
            if not piece:
                raise OSError(f"ended after {sink.have} of {size} bytes")
            sink.write(piece)
        if answer.read(1):
            raise OSError(f"more than {size} bytes")


def write_small(url: str, content: bytes, *, only_if_absent: bool = False) -> None:
    """Put a small object.

    Raises:
        FileExistsError: ``only_if_absent``, and something is there.
        AddressRefusedError: see there.
        OSError: the storage does not answer; whether it was stored is not known.
    """
    headers = {"If-None-Match": "*"} if only_if_absent else {}
    # as a file it goes in pieces: the time limit is for one, and a large log takes longer on a slow road
    _put(url, io.BytesIO(content), len(content), headers)


def write_file(url: str, path: Path, size: int, md5: str) -> None:
    """Put a file in one request.

    Args:
        url: signed for PUT.
        path: the file.
        size: its bytes.
        md5: in base64; the storage refuses bytes that have another.

    Raises:
        FileNotFoundError: the file is gone.
        AddressRefusedError: see there.
        OSError: as above, or the bytes on the way were others.
    """
    with path.open("rb") as file:
        _put(url, file, size, {"Content-MD5": md5})


def _put(url: str, content: IO[bytes], size: int, headers: dict[str, str]) -> None:
    told = {"Content-Type": "application/octet-stream", "Content-Length": str(size), **headers}
    with _opened(url, method="PUT", data=content, headers=told) as answer:
        _small(answer, _LONGEST_COMPLAINT)


def _small(answer: HTTPResponse, most_bytes: int) -> bytes:
    """All of an answer, or its first bytes."""
    content, deadline = bytearray(), time.monotonic() + _SMALL_S
    while len(content) < most_bytes and (piece := answer.read1(most_bytes - len(content))):
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError(f"an answer that is not over after {_SMALL_S:.0f} s")
    if len(content) < most_bytes and answer.length:
        raise OSError(f"ended {answer.length} bytes too early")
    return bytes(content)


def _skip(answer: HTTPResponse, size: int) -> None:
    """A server that does not know ranges sends it all."""
    while size:
        piece = answer.read(min(_PIECE, size))
        if not piece:
            raise OSError("ended too early")
        size -= len(piece)


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Asks where an address leads and nowhere else: whoever answers cannot send us on."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    return opener


@contextmanager
def _opened(
    url: str, *, method: str = "GET", data: IO[bytes] | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[HTTPResponse]:
    """The good answer to a request; its errors and those of reading it in our words."""
    if not url.startswith(("http://", "https://")):
        raise AddressRefusedError("not an address to fetch from")
    try:
        request = urllib.request.Request(url, data, dict(headers or {}), method=method)  # noqa: S310 - just checked
        with _opener().open(request, timeout=_TIMEOUT_S) as answer:
            if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise _meant(answer.status, _complaint(answer))
            yield answer
    except urllib.error.URLError as error:
        raise OSError(f"the storage does not answer: {error.reason}") from None
    except HTTPException as error:
        raise OSError(f"the storage breaks off: {type(error).__name__}") from None
    except OSError:
        raise
    except ValueError as error:
        raise AddressRefusedError(f"not an address to fetch from: {type(error).__name__}") from None


def _complaint(answer: HTTPResponse) -> bytes:
    with suppress(OSError, HTTPException):
        return _small(answer, _LONGEST_COMPLAINT)
    return b""


def _meant(code: int, complaint: bytes) -> OSError:
    # its own word and no more: servers repeat what was signed
    found = re.search(rb"<Code>(\w{1,60})</Code>", complaint)
    said = found[1].decode() if found else ""
    match code:
        case HTTPStatus.NOT_FOUND:
            return AbsentError("no such object")
        case HTTPStatus.PRECONDITION_FAILED:
            return FileExistsError("something is there already")
        case HTTPStatus.FORBIDDEN | HTTPStatus.UNAUTHORIZED:
            return AddressRefusedError(f"{code}: {said}")
        case HTTPStatus.BAD_REQUEST if "Token" in said:  # S3 says ExpiredToken so
            return AddressRefusedError(f"{code}: {said}")
    return OSError(f"{code}: {said}")
