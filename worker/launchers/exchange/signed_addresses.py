"""The signed addresses that a step has, and those that it asks its owner for."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.launchers.exchange.interface import MOST_WANTS
from worker.launchers.exchange.signed_http import AddressRefusedError, GivenUpError
from worker.launchers.exchange.storage_word import OWN


@dataclass
class _Wait:
    """For one address."""

    address: asyncio.Future[str]
    first_asked: float = math.inf
    """The first question that named it: an older word may hold an address that was used up, or has expired."""


class SignedAddresses:
    """Wants and what came of them. An address is kept while it is fresh; whoever has used one up forgets it.

    Args:
        first: what is known from the start, by want.

    Attributes:
        ahead: what is asked for before anybody needs it, and again whenever it is not fresh any more.
    """

    def __init__(self, first: Mapping[str, str]) -> None:
        self.ahead: Sequence[str] = ()
        self._kept: Final[dict[str, tuple[str, float]]] = {want: (url, float("inf")) for want, url in first.items()}
        """With the second until which it is fresh."""
        self._waiting: Final[dict[str, _Wait]] = {}
        self._asked: tuple[int, tuple[str, ...]] = (0, ())
        self._given_up = False

    def at_hand(self, want: str) -> str:
        """A kept address, fresh or not: for the question and the word, which bring the fresh ones.

        Raises:
            AddressRefusedError: it was never given.
        """
        if want not in self._kept:
            raise AddressRefusedError(f"no address yet for {want}")
        return self._kept[want][0]

    async def get(self, want: str) -> str:
        """An address that is good now; waits until the owner has given it.

        Raises:
            AddressRefusedError: the owner says no.
            GivenUpError: see ``give_up``.
        """
        if self._given_up and not want.startswith(OWN):
            raise GivenUpError("given up")
        if self._is_fresh(want):
            return self._kept[want][0]
        wait = self._waiting.get(want)
        if wait is None:
            wait = self._waiting[want] = _Wait(asyncio.get_running_loop().create_future())
        return await asyncio.shield(wait.address)

    def _is_fresh(self, want: str) -> bool:
        return self._kept.get(want, ("", 0.0))[1] > time.monotonic()

    def forget(self, want: str) -> None:
        """It was used up, or the storage does not accept it: another has to be asked for."""
        self._kept.pop(want, None)

    def wants(self, number: int) -> tuple[str, ...]:
        """What question ``number`` asks for: the exchange's own needs first."""
        ahead = (want for want in self.ahead if not self._is_fresh(want))
        wanted = dict.fromkeys([*ahead, *sorted(self._waiting, key=lambda want: not want.startswith(OWN))])
        self._asked = number, tuple(wanted)[:MOST_WANTS]
        for want in self._asked[1]:
            if (wait := self._waiting.get(want)) is not None:
                wait.first_asked = min(wait.first_asked, number)
        return self._asked[1]

    def take(self, addresses: Mapping[str, str], answers: int, fresh_s: float) -> None:
        """Take in the addresses of a word that answers a question."""
        for want, url in addresses.items():
            wait = self._waiting.get(want)
            if not want.startswith(OWN) and (wait is None or answers < wait.first_asked):
                continue
            if self._kept.get(want, ("",))[0] != url:
                self._kept[want] = (url, time.monotonic() + fresh_s)
            if wait is not None:
                del self._waiting[want]
                wait.address.set_result(url)
        number, asked = self._asked
        if answers == number:
            for want in asked:
                if want not in addresses and (wait := self._waiting.pop(want, None)) is not None:
                    wait.address.set_exception(AddressRefusedError(f"the owner gives no address for {want}"))

    def give_up(self) -> None:
        """End every wait for an input or an output."""
        self._given_up = True
        for want in [want for want in self._waiting if not want.startswith(OWN)]:
            self._waiting.pop(want).address.set_exception(GivenUpError("given up"))
