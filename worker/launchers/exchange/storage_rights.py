"""What a step may reach in object storage, as signed addresses: its inputs, its outputs, its side of the exchange."""

import asyncio
import time
from typing import Final

from schemas.steps import StepSpec, attempt_prefix
from worker.errors import NotStored
from worker.launchers.exchange.interface import Question
from worker.launchers.exchange.storage_word import ASK, ENDED, GET, LOG, OWN, OWNER, PUT, WORD, InputFile
from worker.launchers.recordings import recordings_of
from worker.storage import Storage, check_key

ADDRESS_S: Final = 900.0
"""How long an address for the step is good."""
FRESH_S: Final = ADDRESS_S / 2
"""For so long after a word was said every address in it is good: longer than a word takes to arrive."""
CLAIM_S: Final = 7 * 24 * 3600.0
"""How long a job may wait in its cluster's queue: as long as S3 signs for at all."""


class StepRights:
    """The rights of one start of one step.

    Args:
        storage: the worker's own.
        prefix: where the exchange's objects lie.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix
        self._standing: tuple[float, dict[str, str]] = (-ADDRESS_S, {})
        """When the addresses that every word holds were signed, and they."""
        self._recordings: frozenset[str] | None = None

    async def addresses(self, spec: StepSpec, question: Question) -> dict[str, str]:
        """By want: what every word holds, and what a question wants, as far as this step may have it."""
        signed_at, standing = self._standing
        if time.monotonic() - signed_at > ADDRESS_S / 4:
            signed_at, standing = time.monotonic(), await self._sign_standing()
            self._standing = signed_at, standing
        return standing | {want: address for want in question.wants if (address := await self.signed(spec, want))}

    async def signed(self, spec: StepSpec, want: str) -> str | None:
        """The address for a want; None: this step may not have it, or nothing can lie there."""
        kind, _, name = want.partition(":")
        try:
            check_key(name)
            match kind + ":":
                case kind if kind == GET and await self._may_read(spec, name):
                    return await self._storage.signed_url(name, ADDRESS_S)
                case kind if kind == PUT and name.startswith((f"{spec.step}/", "checkpoints/")):
                    return await self._storage.signed_url(f"{attempt_prefix(spec)}/{name}", ADDRESS_S, "PUT")
                case kind if kind == OWN and (name in {LOG, ENDED} or name.startswith("events/")):
                    return await self._storage.signed_url(f"{self._prefix}/{name}", ADDRESS_S, "PUT")
        except (ValueError, NotStored):  # no key, or a manifest that is not what it was
            pass
        return None

    async def inputs(self, spec: StepSpec) -> dict[str, list[InputFile]]:
        """What each of the spec's sources consists of, by name."""
        return {name: await self._files_of(source.address) for name, source in spec.sources.items()}

    async def _sign_standing(self) -> dict[str, str]:
        return {
            OWN + ASK: await self._storage.signed_url(f"{self._prefix}/{ASK}", ADDRESS_S, "PUT"),
            OWN + OWNER: await self._storage.signed_url(f"{self._prefix}/{OWNER}", ADDRESS_S),
            # sealed, and the only way back for a step that was cut off for longer than the others last
            OWN + WORD: await self._storage.signed_url(f"{self._prefix}/{WORD}", CLAIM_S),
        }

    async def _may_read(self, spec: StepSpec, key: str) -> bool:
        sources = spec.sources.values()
        if any(key == source.address or key.startswith(source.address + "/") for source in sources):
            return True
        if self._recordings is None:
            manifests = [source for source in sources if source.lists_recordings]
            places = [await self._storage.materialize(one.address, sha256=one.sha256) for one in manifests]
            found = [await asyncio.to_thread(recordings_of, place) for place in places]
            self._recordings = frozenset(recording.key for some in found for recording in some)
        return key in self._recordings

    async def _files_of(self, address: str) -> list[InputFile]:
        size = await self._storage.size(address)
        if size is not None:
            return [InputFile(path="", bytes=size)]
        return [
            InputFile(path=stored.key[len(address) + 1 :], bytes=stored.bytes)
            async for stored in self._storage.listing(address)
        ]
