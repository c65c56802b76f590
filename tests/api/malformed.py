"""Malformed uploads and bodies against a served API: each is refused with a code, nothing is stored, nothing leaks.

    python -m tests.api.malformed [--count 10000] [--seed 1]

Starts its own server (TEST_DATABASE_URL names the database server). Prints one last line `RESULT {…}`; exits 1 where
an answer was no 4xx with a code, or anything stayed behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.api.conftest import wav

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = 4
"""Half of an organization's uploads at once: one that broke off holds its place until that is noticed."""
TABLES = ("training_data", "uploads", "training_runs", "removals", "webhooks")
NAMES = (
    "../../etc/passwd.wav", "..\\..\\x.wav", "/etc/x.txt", "a/../b.wav", "C:/x/y.wav", "..", ".", "", " ", "x\x00.wav",
    "x\r\ny.wav", "x.exe", "noextension", "x" * 300 + ".wav", "\u202egpj.wav", "con/.wav", "x.wav/", "....//x.txt",
)  # fmt: skip


@dataclass
class Case:
    """One request as it goes over the wire; `broken`: the sender goes away before the end."""

    kind: str
    head: list[str]
    body: bytes
    broken: bool = False


@dataclass
class Target:
    """The served API."""

    host: str
    port: int
    key: str
    model: int
    language: int
    organization: int
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


def multipart(name: bytes, content: bytes, *, closed: bool = True) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="' + name + b'"\r\n\r\n'
    return head + content + (b"\r\n--b--\r\n" if closed else b"")


def upload(kind: str, target: Target, body: bytes, *, broken: bool = False, length: int | None = None) -> Case:
    head = [
        f"POST /api/v3/custom_models/{target.model}/data HTTP/1.1",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return Case(kind, head, body, broken)


def post(kind: str, path: str, body: bytes, media: str = "application/json") -> Case:
    return Case(kind, [f"POST /api/v3{path} HTTP/1.1", f"Content-Type: {media}", f"Content-Length: {len(body)}"], body)


def silence(hours: int) -> bytes:
    """A flac header that promises hours, and next to nothing behind it."""
    samples = hours * 3600 * 16_000
    rate = (16_000 << 44) | (0 << 41) | (15 << 36) | samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + rate.to_bytes(8, "big") + bytes(16)
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + info + bytes(100)


def damaged(dice: random.Random) -> bytes:
    """A short wav file with its header spoiled, so that it is none."""
    data = bytearray(wav(0.1))
    data[dice.randrange(4)] ^= 0xFF
    return bytes(data)


def wrong_types(target: Target, dice: random.Random) -> Case:
    values: list[Any] = [None, True, [], {}, "1", 1.5, -1, 0, 10**25, "\x00", ""]
    body = {"name": "x", "language_id": target.language, "organization_id": target.organization}
    for name in dice.sample(sorted(body), dice.randrange(1, 4)):
        body[name] = dice.choice([value for value in values if name != "name" or value != "1"])  # "1" is a name
    return post("wrong_types", "/custom_models", json.dumps(body).encode())


def makers(target: Target, dice: random.Random) -> list[Callable[[], Case]]:
    model = f"/custom_models/{target.model}"

    def truncated() -> Case:
        whole = multipart(b"a.wav", wav(0.1))
        return upload("truncated", target, whole[: dice.randrange(1, len(whole) - 12)])

    def broken_off() -> Case:
        whole = multipart(b"a.wav", wav(0.5))
        part = whole[: dice.randrange(1, len(whole))]
        return upload("broken_off", target, part, broken=True, length=len(whole) + 1)

    def noise() -> Case:
        return upload("noise", target, dice.randbytes(dice.randrange(1, 2_000)))

    return [
        truncated,
        broken_off,
        noise,
        lambda: upload("path_tricks", target, multipart(dice.choice(NAMES).encode(), b"words")),
        lambda: upload("hours_of_silence", target, multipart(b"a.flac", silence(dice.randrange(7, 500)))),
        lambda: upload("damaged_audio", target, multipart(b"a.wav", damaged(dice))),
        lambda: upload(
            "not_audio", target, multipart(b"a." + dice.choice([b"mp3", b"m4a", b"ogg", b"flac"]), b"\0" * 500)
        ),
        lambda: upload("empty", target, multipart(b"a." + dice.choice([b"txt", b"wav", b"vtt", b"jsonl"]), b"")),
        lambda: upload("not_text", target, multipart(b"a.txt", b"\xff\xfe" + dice.randbytes(20) + b"\x00\xff")),
        lambda: upload("bad_manifest", target, multipart(b"a.jsonl", b'{"audio_filepath": 7}\n[]\nnull\n')),
        lambda: wrong_types(target, dice),
        lambda: post("not_json", "/custom_models", dice.randbytes(dice.randrange(1, 200)) + b"{"),
        lambda: post("wrong_media", "/custom_models", b"{}", dice.choice(["text/plain", "image/png", "x"])),
        lambda: post("deep", "/custom_models", b"[" * 50_000),
        lambda: post("wrong_media_upload", f"{model}/data", b"{}"),
        lambda: post("bad_upload", f"{model}/uploads", json.dumps({"name": "../x.wav", "bytes": 5}).encode()),
        lambda: post("huge_upload", f"{model}/uploads", json.dumps({"name": "x.wav", "bytes": 2**62}).encode()),
        lambda: post("no_data", f"{model}/run", b"{}"),
        lambda: post("bad_run", f"{model}/run", dice.choice([b"[]", b"7", b"{", b'"x"'])),
        lambda: post("bad_webhook", "/webhooks", b'{"url": "https://127.0.0.1/"}'),
    ]


async def send(target: Target, case: Case) -> None:
    """Send one case on a connection of its own; keep what is wrong with the answer."""
    target.kinds[case.kind] += 1
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        head = [*case.head, "Host: x", f"Authorization: Bearer {target.key}", "Connection: close"]
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + case.body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        if case.broken:
            return
        answer = await asyncio.wait_for(reader.read(), 30)
        check(target, case, answer)
    except ConnectionError as error:
        target.wrong.append(f"{case.kind}: {error!r}")
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def check(target: Target, case: Case, answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head[9:12].isdigit() else 0
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        code = ""
    target.codes[f"{status} {code}"] += 1
    if not (400 <= status < 500 and code):
        target.wrong.append(f"{case.kind}: {answer[:200]!r} for {case.body[:100]!r}")


def footprint(pid: int) -> tuple[int, int]:
    """Resident bytes, and open descriptors."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def left_behind(ready: dict[str, Any]) -> dict[str, int]:
    connection = await asyncpg.connect(ready["database_url"])
    found = {table: await connection.fetchval(f"select count(*) from {table}") for table in TABLES}
    found["models"] = await connection.fetchval("select count(*) from custom_models")
    await connection.close()
    for name in ("storage", "uploads"):
        folder = Path(ready[name])
        found[f"files in {name}"] = sum(path.is_file() for path in folder.rglob("*")) if folder.exists() else 0
    return found


async def settled(pid: int, descriptors: int) -> int:
    """Open descriptors once connections that were just closed are gone; the fact that is waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while footprint(pid)[1] > descriptors:
                await asyncio.sleep(0.1)
    return footprint(pid)[1]


async def volley(target: Target, cases: list[Case]) -> None:
    waiting = iter(cases)

    async def sender() -> None:
        for case in waiting:
            await send(target, case)

    await asyncio.gather(*(sender() for _ in range(AT_ONCE)))


async def measure(ready: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    import httpx  # noqa: PLC0415

    headers = {"Authorization": f"Bearer {ready['key']}"}
    body = {"name": "x", "language_id": ready["language_id"], "organization_id": ready["organization_id"]}
    async with httpx.AsyncClient(base_url=ready["url"], headers=headers, trust_env=False) as http:
        model = (await http.post("/api/v3/custom_models", json=body)).json()["id"]
    host, _, port = ready["url"].removeprefix("http://").partition(":")
    target = Target(host, int(port), ready["key"], model, ready["language_id"], ready["organization_id"])
    dice = random.Random(seed)
    kinds = makers(target, dice)
    cases = [kinds[number % len(kinds)]() for number in range(count)]
    await volley(target, cases[: count // 5])  # caches and pools fill; from here on nothing should grow
    memory, descriptors = footprint(ready["pid"])
    await volley(target, cases[count // 5 :])
    descriptors_after = await settled(ready["pid"], descriptors)
    return {
        "bench": "malformed",
        "requests": count,
        "kinds": dict(target.kinds),
        "answers": dict(sorted(target.codes.items())),
        "wrong": target.wrong[:10],
        "wrong_count": len(target.wrong),
        "left": await left_behind(ready),
        "memory_growth_bytes": footprint(ready["pid"])[0] - memory,
        "descriptors": [descriptors, descriptors_after],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.api.serve_for_tests"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        result = asyncio.run(measure(json.loads(server.stdout.readline()), options.count, options.seed))
    finally:
        server.stdin.close()
        server.wait()
    print("RESULT " + json.dumps(result))
    clean = (
        all(value == 0 for name, value in result["left"].items() if name != "models") and result["left"]["models"] == 1
    )
    return 0 if clean and not result["wrong_count"] else 1


if __name__ == "__main__":
    sys.exit(main())
