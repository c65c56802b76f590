"""What a remote launcher needs of a cluster, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol


class Presence(Enum):
    """Where a submitted step is, as the cluster tells."""

    ALIVE = auto()
    """Waiting, starting, running or ending: it may still act."""
    GONE = auto()
    """Over, however it ended; or unknown to the cluster."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One step in the cluster's list."""

    presence: Presence
    word: str
    """The cluster's own word for its state, for the operator."""


class Cluster(Protocol):
    """What a launcher needs of a cluster. Every method raises ``LauncherUnavailable`` when it does not answer."""

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        """Queue a shell command under a unique name; what it prints goes to ``output``, or where the cluster likes."""

    async def sightings(self) -> Mapping[str, Sighting]:
        """Every step the cluster knows of, by name. A name that is missing is gone."""

    async def cancel(self, name: str) -> None:
        """Kill it, waiting or running; no error when it is gone."""
