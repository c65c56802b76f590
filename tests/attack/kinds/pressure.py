"""What everybody may do, done too much: locks, slots, storage, storms."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid

from tests.attack.attacker import Attacker, kind
from tests.attack.victim import recording
from tests.attack.wire import API, multipart

MANY: list[tuple[str | bytes, bytes]] = [(f"f{n}.txt", b"word") for n in range(500)]


@kind("5")
async def one_model_lock(attacker: Attacker) -> None:
    """A long upload to a model of 500 files, and 12 small requests that want the same lock."""
    model = await attacker.model()
    for begin in range(0, len(MANY), 100):
        body, headers = multipart(MANY[begin : begin + 100])
        await attacker.ready("POST", f"/custom_models/{model}/data", body, headers)
    names = b"\n".join(b'{"audio_filepath":"f%d.wav","text":"a"}' % n for n in range(150_000))
    long = asyncio.ensure_future(attacker.upload(model, [("names.jsonl", names)]))
    while attacker.left_s and not long.done():
        wanted = {"name": "a.txt", "bytes": 60}
        await asyncio.gather(
            *(
                attacker.member.ask("POST", f"/custom_models/{model}/uploads", wanted, timeout_s=attacker.left_s + 1)
                for _ in range(12)
            )
        )
        await asyncio.sleep(0.1)
    await asyncio.wait([long], timeout=attacker.left_s + 1)
    long.cancel()


@kind("17", refuses=True)
async def a_strangers_lock(attacker: Attacker) -> None:
    """Deletes of another organization's data: the lock must not be waited for before the right is known."""
    model = attacker.victim_models[-1]
    await attacker.repeated(lambda n: attacker.owner.ask("DELETE", f"/custom_models/{model}/data/{n + 1}"), 60, 8)


@kind("6")
async def racing_parts(attacker: Attacker) -> None:
    """Twenty requests at once that send the same part of a file."""
    model = await attacker.model()
    begun = await attacker.ready("POST", f"/custom_models/{model}/uploads", {"name": "a.wav", "bytes": 4_000_000})
    part = recording(20.0)[:300_000]
    path = f"/custom_models/{model}/uploads/{begun.json().get('id')}"
    headers = {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    await attacker.repeated(lambda _: attacker.owner.ask("PATCH", path, part, headers), 20, 20)


@kind("6")
async def unfinished_uploads(attacker: Attacker) -> None:
    """Files that are begun, get a mebibyte and are never finished."""
    model = await attacker.model()
    part = bytes(1 << 20)

    async def begin(n: int) -> None:
        begun = await attacker.owner.ask(
            "POST", f"/custom_models/{model}/uploads", {"name": f"a{n}.wav", "bytes": 2_000_000_000}
        )
        if begun.status == 201:
            headers = {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
            await attacker.owner.ask("PATCH", f"/custom_models/{model}/uploads/{begun.json()['id']}", part, headers)

    await attacker.repeated(begin, 30, 4)


def m4a_of_no_length(size: int) -> bytes:
    """An MP4 whose header says 0.0 s, and many bytes."""
    mvhd = struct.pack(">4sIIIII", b"mvhd", 0, 0, 0, 2**32 - 1, 1) + bytes(80)
    moov = struct.pack(">I", len(mvhd) + 4 + 8) + b"moov" + struct.pack(">I", len(mvhd) + 4) + mvhd
    data = bytes(size)
    return struct.pack(">I", 16) + b"ftypM4A \0\0\0\0" + moov + struct.pack(">I", len(data) + 8) + b"mdat" + data


@kind("6")
async def recordings_that_lie(attacker: Attacker) -> None:
    """8 MiB of sound that claims no length, and 44 bytes that claim six hours."""
    model = await attacker.model()
    head = bytearray(recording(0.1))
    head[40:44] = struct.pack("<I", 6 * 3600 * 16_000)
    files = [[("none.m4a", m4a_of_no_length(8 << 20))], [("long.wav", bytes(head))]]
    await attacker.repeated(lambda n: attacker.upload(model, files[n % 2]), 4, 2)


@kind("6")
async def large_transcripts(attacker: Attacker) -> None:
    """Transcripts of almost 16 MiB, which no quota of hours counts."""
    model = await attacker.model()
    text = b"word " * 3_200_000
    await attacker.repeated(lambda n: attacker.upload(model, [(f"large{n}.txt", text)]), 2, 2)


@kind("12")
async def hooks_to_nowhere(attacker: Attacker) -> None:
    """Webhooks at names that nobody answers for, eight at a time."""
    body = {"events": ["succeeded"]}
    await attacker.repeated(
        lambda _: attacker.owner.ask(
            "POST", "/webhooks", body | {"url": f"https://{uuid.uuid4().hex}.invalid/hook"}, timeout_s=8
        ),
        24,
        8,
    )


INSIDE = (
    "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://10.0.0.1/", "https://169.254.169.254/latest", "https://2130706433/",
    "https://0x7f000001/", "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://100.64.0.1/", "https://0.0.0.0/",
    "https://user@127.0.0.1/", "https://127.0.0.1.nip.io@10.0.0.1/", "http://127.0.0.1:5432/", "file:///etc/passwd",
)  # fmt: skip


@kind("16", refuses=True)
async def hooks_to_the_inside(attacker: Attacker) -> None:
    """Webhooks at internal addresses in every notation."""

    async def register(n: int) -> None:
        answer = await attacker.owner.ask(
            "POST", "/webhooks", {"url": INSIDE[n % len(INSIDE)], "events": ["succeeded"]}, timeout_s=8
        )
        if answer.status == 201:
            attacker.kept.setdefault("reached", set()).add(INSIDE[n % len(INSIDE)])

    await attacker.repeated(register, len(INSIDE), 4)


@kind("6")
async def idempotency_storm(attacker: Attacker) -> None:
    """One key from many requests at once with different bodies, and very many keys."""

    def body(n: int) -> dict[str, object]:
        return {"name": f"idem {n % 3}", "language_id": attacker.language, "organization_id": attacker.organization}

    one = uuid.uuid4().hex
    await attacker.repeated(
        lambda n: attacker.owner.ask("POST", "/custom_models", body(n), {"Idempotency-Key": one}), 40, 20
    )
    await attacker.repeated(
        lambda n: attacker.owner.ask("POST", "/custom_models", body(n), {"Idempotency-Key": uuid.uuid4().hex}), 60, 10
    )


@kind("5")
async def entity_tag_storm(attacker: Attacker) -> None:
    """Polls that carry thousands of entity tags."""
    model = await attacker.model()
    tags = ", ".join(f'"{n:032x}"' for n in range(1_500))
    await attacker.repeated(
        lambda _: attacker.owner.ask("GET", f"/custom_models/{model}", headers={"If-None-Match": tags}), 120, 10
    )


@kind("17")
async def streams_by_the_hundred(attacker: Attacker) -> None:
    """Hundreds of open streams of changes."""
    model = await attacker.model()
    head = attacker.owner.head("GET", f"{API}/custom_models/{model}/changes", {})
    async with attacker.open(300, head) as opened:
        end = min(attacker.until, time.monotonic() + 60)
        for n in range(20):
            if not attacker.left_s:
                break
            body = {"name": f"changed {n}", "language_id": attacker.language, "organization_id": attacker.organization}
            await attacker.member.ask("PUT", f"/custom_models/{model}", body)
            await asyncio.sleep(0.2)
        assert len(opened) <= 300
        await asyncio.sleep(max(0.0, end - time.monotonic()))


@kind("8", refuses=True)
async def rate_flood(attacker: Attacker) -> None:
    """Far more requests than a key may make."""
    model = await attacker.model()
    await attacker.repeated(lambda _: attacker.member.ask("GET", f"/custom_models/{model}"), 600, 20)


@kind("5")
async def create_and_delete(attacker: Attacker) -> None:
    """Models that come, get files and go."""

    async def loop(n: int) -> None:
        body = {"name": f"brief {n}", "language_id": attacker.language, "organization_id": attacker.organization}
        made = await attacker.owner.ask("POST", "/custom_models", body)
        if made.status == 201:
            model = made.json()["id"]
            await attacker.upload(model, MANY[:20])
            await attacker.owner.ask("DELETE", f"/custom_models/{model}")

    await attacker.repeated(loop, 20, 4)


@kind("5")
async def searches_and_deep_pages(attacker: Attacker) -> None:
    """Searches for what matches everything, sorted by everything, from far behind."""
    sorts = ("id", "name", "key", "last_modified", "base_language_key", "training_status")
    await attacker.repeated(
        lambda n: attacker.owner.ask(
            "GET", f"/speech-to-text/models?q=%25_{n % 10}&sort={sorts[n % 6]}&offset={n * 1_000}&limit=100"
        ),
        100,
        10,
    )
