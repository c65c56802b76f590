"""Many files between a node and its storage, by addresses that do not last."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.concurrency import all_of
from worker.launchers.exchange import transfers as road
from worker.launchers.exchange.signed_addresses import SignedAddresses
from worker.launchers.exchange.signed_http import AddressRefusedError, GivenUpError, Sink
from worker.launchers.exchange.transfers import WAITING, Transfers

ADDRESS_S, FRESH_S, FILE_S = 0.6, 0.3, 0.02
"""A thousandth or so of what they are: a file takes so long that the last of a question's wait beyond an address's life."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys, as they are fetched from a storage where an address is the second when it was signed."""
    served = []

    def read_into(url: str, sink: Sink, size: int) -> None:
        signed_at, key = url.split(maxsplit=1)
        if time.monotonic() - float(signed_at) > ADDRESS_S:
            raise AddressRefusedError("403: AccessDenied")
        time.sleep(FILE_S)
        sink.write(b"x" * size)
        served.append(key)

    monkeypatch.setattr(road, "read_into", read_into)
    monkeypatch.setattr(road, "_FIRST_PAUSE_S", 0.001)
    return served


async def answering(addresses: SignedAddresses, numbers: Iterator[int]) -> None:
    for number in numbers:
        wants = addresses.wants(number)
        await asyncio.sleep(0.005)
        addresses.take({want: f"{time.monotonic()} {want}" for want in wants}, number, FRESH_S)
        await asyncio.sleep(0.005)


async def test_files_that_wait_longer_than_an_address_lasts_come_all_the_same(served: list[str], tmp_path: Path):
    addresses = SignedAddresses({})
    transfers = Transfers(addresses)
    transfers.patience_s = 0.6
    owner = asyncio.create_task(answering(addresses, iter(range(1, 10**9))))
    files = [f"file {n}" for n in range(2 * WAITING)]
    await all_of(files, lambda name: transfers.download(name, 3, tmp_path / name), WAITING)
    owner.cancel()
    assert len(served) == len(files)


async def test_what_waits_for_its_turn_ends_when_it_is_given_up(served: list[str], tmp_path: Path):
    addresses = SignedAddresses({})
    transfers = Transfers(addresses)
    owner = asyncio.create_task(answering(addresses, iter(range(1, 10**9))))
    waiting = [asyncio.create_task(transfers.download(f"{n}", 3, tmp_path / f"{n}")) for n in range(WAITING)]
    while not served:
        await asyncio.sleep(0.001)
    transfers.give_up()
    addresses.give_up()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    owner.cancel()
    assert sum(isinstance(end, GivenUpError) for end in ended) > WAITING // 2
    assert len(served) < 16
