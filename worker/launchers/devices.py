"""A device is never given twice on a host: each is a file, and whoever trains on it holds the file's lock."""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.launchers.environment import CPU


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """A device and the descriptor whose lock says that it is taken.

    The lock belongs to the open file, not to a process: passed on to supervisor and trainer, it is free again
    when the last of them is gone, whoever else died before.
    """

    name: str
    descriptor: int


class Devices:
    """The devices of this host that this worker may use, ``0``, ``1`` … or ``cpu``."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = tuple(names)

    def hold(self, count: int) -> list[HeldDevice]:
        """So many free devices, the first ones; none when there are not so many. ``cpu`` is enough for any number."""
        self._folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
        held: list[HeldDevice] = []
        for name in self._names:
            if name == CPU and held:
                continue  # it does not go with others
            descriptor = self._open(self._folder / f"device-{name}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                held.append(HeldDevice(name, descriptor))
                if name == CPU or len(held) == count:
                    return held
        for device in held:  # all or none: two steps that wait for each other's would wait for ever
            os.close(device.descriptor)
        return []

    def _open(self, path: Path) -> int:
        # an existing file first: in a shared folder the kernel may forbid O_CREAT on another user's file
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
