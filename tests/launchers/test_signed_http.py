"""What a storage, or whatever answers in its place, may do to a request: an error in our words, and never for ever."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from worker.launchers.exchange import signed_http
from worker.launchers.exchange.signed_http import AbsentError, AddressRefusedError, read_into, read_small, write_small

SECRET = "X-Amz-Signature=very-secret"
Server = Callable[..., str]


@pytest.fixture
def server() -> Iterator[Server]:
    """Makes servers that send these pieces, whatever they are asked; gives a signed address."""
    listening: list[socket.socket] = []

    def make(*pieces: bytes, pause_s: float = 0) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause_s)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/object?{SECRET}"

    yield make
    for listener in listening:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def redirect(place: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


BROKEN = {
    "an error whose chunks break off": b"HTTP/1.1 503 Slow Down\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n<Error>",
    "an error that breaks off": b"HTTP/1.1 503 Slow Down\r\nContent-Length: 500\r\n\r\n<Error>",
    "an answer that breaks off": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "no HTTP": b"garbage\r\n\r\n",
    "nothing": b"",
    "a redirect to nowhere": redirect("http://[bad/"),
    "a redirect to no port": redirect("http://127.0.0.1:notaport/"),
    "a redirect to another protocol": redirect("file:///etc/passwd"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_answers_the_error_is_ours_and_holds_no_address(server: Server, what: str):
    address = server(BROKEN[what])
    for act in (lambda: read_small(address, 10), lambda: write_small(address, b"a")):
        with pytest.raises(OSError, match=r"storage|early|302|503|reset") as told:
            act()
        assert SECRET not in str(told.value)


def test_no_redirect_is_followed(server: Server):
    elsewhere = server(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninternal")
    with pytest.raises(OSError, match="302"):
        read_small(server(redirect(elsewhere)), 10)


@pytest.mark.parametrize("address", ["http://[bad/", "nonsense", "file:///etc/passwd", "http://host:x/", "http://a b/"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(OSError, match=r"not an address|the storage") as told:
        read_small(address, 10)
    assert address not in str(told.value)


def test_the_storages_own_word_for_an_error_is_told(server: Server):
    body = b"<Error><Code>AccessDenied</Code></Error>"
    with pytest.raises(AddressRefusedError, match="403: AccessDenied"):
        read_small(server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)), 10)
    with pytest.raises(AbsentError):
        read_small(server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), 10)


def test_an_answer_that_drips_has_an_end(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signed_http, "_SMALL_S", 0.3, raising=False)
    drops = [b"x"] * 100
    address = server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *drops, pause_s=0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        read_small(address, 1000)
    assert time.monotonic() - began < 3


class Kept:
    have = 0

    def __init__(self) -> None:
        self.content = b""

    def write(self, piece: bytes) -> None:
        self.content += piece
        self.have += len(piece)


def test_an_object_that_came_whole_before_it_broke_off_is_not_asked_for_again(server: Server):
    kept = Kept()
    kept.write(b"whole")
    read_into(server(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n"), kept, 5)
    assert kept.content == b"whole"


def test_a_large_object_goes_in_pieces_that_each_have_their_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signed_http, "_TIMEOUT_S", 1.0)
    size = 64 * 2**20
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            left = size
            while left > 0 and (piece := connection.recv(262_144)):
                left -= len(piece)
                time.sleep(0.01)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    with listener:
        write_small(f"http://127.0.0.1:{listener.getsockname()[1]}/log", b"x" * size)
        serving.join()
