"""The connection itself: heads and bodies that never end, answers that nobody reads. Most of it needs no key."""

from __future__ import annotations

import asyncio
import contextlib

from tests.attack.attacker import SOURCE, Attacker, kind
from tests.attack.wire import API, NO_ANSWER, Answer, Connection


@kind("3", refuses=True, slices=2.5)
async def half_heads(attacker: Attacker) -> None:
    """Two hundred connections with half a head, and a header line a second."""
    async with attacker.open(200, b"GET /api/v3/caller HTTP/1.1\r\nHost: a\r\n") as opened:
        await attacker.held(opened, lambda n: b"X-%d: y\r\n" % n)


@kind("3", refuses=True)
async def endless_header(attacker: Attacker) -> None:
    """Headers of up to 63 MB that never end, on four connections."""
    piece = b"a" * (256 << 10)

    async def flood(one: Connection) -> None:
        reading = asyncio.ensure_future(one.answer())
        try:
            for _ in range(252):
                if reading.done() or not attacker.left_s:
                    break
                async with asyncio.timeout(attacker.left_s + 1):
                    await one.send(piece)
        except (OSError, TimeoutError):
            pass
        with contextlib.suppress(OSError, EOFError, ValueError, IndexError, asyncio.CancelledError, TimeoutError):
            attacker.anonymous.note("endless header", await asyncio.wait_for(reading, min(1.0, attacker.left_s + 0.1)))
        reading.cancel()

    async with attacker.open(4, b"GET /api/v3/caller HTTP/1.1\r\nHost: a\r\nX-Endless: ") as opened:
        await asyncio.gather(*(flood(one) for one in opened))


@kind("3", refuses=True)
async def endless_address(attacker: Attacker) -> None:
    """Request lines and queries of hundreds of kilobytes."""
    for size in (20_000, 60_000, 200_000, 1_000_000):
        await attacker.repeated(
            lambda _, size=size: attacker.owner.ask("GET", "/speech-to-text/models?q=" + "q" * size, timeout_s=5), 4, 2
        )


@kind("3", refuses=True)
async def silent_connections(attacker: Attacker) -> None:
    """More connections than a service may open files, none of which says anything."""
    async with attacker.open(1_100) as opened:
        await attacker.held(opened)


@kind("3", refuses=True)
async def silent_connections_from_everywhere(attacker: Attacker) -> None:
    """The same from two hundred addresses: no limit by address helps alone."""
    async with attacker.open(1_100, addresses=200) as opened:
        await attacker.held(opened)


@kind("3", refuses=True)
async def half_heads_from_everywhere(attacker: Attacker) -> None:
    """Half a head each, from two hundred addresses."""
    async with attacker.open(1_100, b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\n", addresses=200) as opened:
        await attacker.held(opened)


@kind("3")
async def connections_by_the_thousand(attacker: Attacker) -> None:
    """Connections that come and go at once."""

    async def once(_: int) -> None:
        attacker.extra += 1
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                (await Connection.open(attacker.port, SOURCE)).close()

    await attacker.repeated(once, 2_000, 20)


@kind("15")
async def bodies_a_byte_a_second(attacker: Attacker) -> None:
    """JSON bodies that come one byte at a time."""
    head = attacker.owner.head(
        "POST", API + "/custom_models", {"Content-Type": "application/json", "Content-Length": "60000"}
    )
    async with attacker.open(60, head) as opened:
        await attacker.held(opened, lambda _: b" ")


@kind("15", refuses=True, slices=2.5)
async def upload_slots_held(attacker: Attacker) -> None:
    """As many uploads as there are slots, each a byte a second."""
    model = await attacker.model()
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1000000"}
    head = attacker.owner.head("POST", f"{API}/custom_models/{model}/data", headers)
    begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    async with attacker.open(40, head + begin) as opened:
        await attacker.held(opened, lambda _: b"w")


@kind("15")
async def slow_readers(attacker: Attacker) -> None:
    """Large answers asked for again and again on connections that read nothing."""
    opened: list[Connection] = []
    ask = attacker.anonymous.head("GET", API + "/openapi.json", {})
    try:
        for _ in range(60):
            attacker.extra += 20
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    opened.append(await Connection.open(attacker.port, SOURCE, receive_buffer=4_096))
                    opened[-1].writer.transport.pause_reading()  # type: ignore[attr-defined]
                    opened[-1].writer.write(ask * 20)
            if not attacker.left_s:
                break
        await asyncio.sleep(attacker.left_s)
    finally:
        for one in opened:
            one.close()


@kind("3")
async def chunks_without_an_end(attacker: Attacker) -> None:
    """Chunked bodies of one-byte chunks with long extensions."""
    head = attacker.owner.head(
        "POST", API + "/custom_models", {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    )
    async with attacker.open(20, head) as opened:
        await attacker.held(opened, lambda _: (b"1;x=" + b"y" * 2_000 + b"\r\n \r\n") * 20)


@kind("3")
async def pipelined_requests(attacker: Attacker) -> None:
    """A hundred requests at once on a connection, whose answers are read slowly."""
    ask = attacker.owner.head("GET", API + "/caller", {})

    async def pipeline(_: int) -> None:
        try:
            async with asyncio.timeout(attacker.left_s + 1):
                one = await Connection.open(attacker.port, SOURCE)
                try:
                    attacker.extra += 100
                    sending = asyncio.ensure_future(one.send(ask * 100))
                    for _ in range(100):
                        await one.answer()
                    await sending
                finally:
                    one.close()
        except (OSError, EOFError, ValueError, IndexError, TimeoutError):
            return

    await attacker.repeated(pipeline, 5, 3)


@kind("3", refuses=True)
async def what_is_no_http(attacker: Attacker) -> None:
    """Both lengths, odd encodings, bare line feeds, another protocol."""
    crooked = [
        b"GET / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"GET /api/v3/caller HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]  # fmt: skip

    async def once(n: int) -> None:
        try:
            async with asyncio.timeout(3):
                one = await Connection.open(attacker.port, SOURCE)
                try:
                    attacker.extra += 1
                    await one.send(crooked[n % len(crooked)])
                    attacker.anonymous.note("no HTTP", await one.answer())
                finally:
                    one.close()
        except (OSError, EOFError, ValueError, IndexError, TimeoutError):
            attacker.anonymous.note("no HTTP", Answer(NO_ANSWER))

    await attacker.repeated(once, 60, 6)
