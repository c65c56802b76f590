"""Three builds that are broken on purpose, each of which the suite must catch; and one that is not.

    CHAOS_BROKEN_BUILD=no_fence python -m tests.chaos.broken run

``no_fence``: whoever wrote last is believed, and nobody hears that a run is lost. ``no_supervisor``: trainers are
paused and ended by nobody. ``ack_before_commit``: a message is acknowledged as soon as it has come in.
``hosts_apart`` is the product as it is, but its workers do not see each other's processes, as on hosts of their own:
the net that the local launcher spreads below the fence (``ensure_stopped``) does not reach there. The first two are
built on it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from worker.cli.parser import main

if TYPE_CHECKING:
    from collections.abc import Callable


def hosts_apart() -> None:
    """No worker sees another one's processes."""
    from worker.launchers.local import LocalLauncher  # noqa: PLC0415

    async def ensure_stopped(*_: object) -> None:
        """Nothing of that attempt is on this host."""

    LocalLauncher.ensure_stopped = ensure_stopped  # type: ignore[assignment]


def no_fence() -> None:
    """Attempt and owner are looked at nowhere: as if every write said ``where id = $1``."""
    hosts_apart()
    from worker.pipeline.attempt import Attempt, Ending  # noqa: PLC0415
    from worker.store import queries as loader  # noqa: PLC0415
    from worker.store import runs  # noqa: PLC0415

    texts = loader.queries("runs")
    for name, text in texts.items():
        texts[name] = (
            text.replace(" and r.attempt = m.attempt and r.status = 3 and r.worker_id = $1", " and r.status = 3 and $1::text <> ''")
            .replace("returning r.id, r.attempt, r.cancel_requested_at", "returning r.id, (select m.attempt from"
                     " unnest($2::uuid[], $3::int[]) as m (id, attempt) where m.id = r.id) as attempt, r.cancel_requested_at")
            .replace(" and r.attempt = w.attempt and r.status = w.from_status", " and r.status = w.from_status")
            .replace(" and r.attempt = p.attempt", "")
            .replace(" and r.attempt = $2", " and $2::int is not null")
            .replace(" and attempt = $2", " and $2::int is not null")
        )  # fmt: skip
    assert texts is runs._Q or texts == runs._Q
    believed = Attempt.end

    def end(self: Attempt, ending: Ending) -> None:
        if ending is not Ending.LOST:
            believed(self, ending)

    Attempt.end = end  # type: ignore[method-assign]


def no_supervisor() -> None:
    """Trainers run beyond the right to run them, and beyond the death of whoever started them."""
    hosts_apart()
    from worker.launchers import local  # noqa: PLC0415

    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    local._SUPERVISOR = (  # type: ignore[misc]
        sys.executable,
        "-IS",
        "-c",
        (
            f"import sys; sys.path.insert(0, {source!r})\n"
            "from worker.launchers import supervisor as s\n"
            "class Careless(s.Supervisor):\n"
            "    def _keep_right(self): pass\n"
            "    def _end(self, reason):\n"
            "        if reason == 'owner_gone': s.os._exit(0)\n"
            "        super()._end(reason)\n"
            "class Deaf:\n"
            "    def prctl(self, *arguments): return 0\n"
            "s._libc = Deaf()\n"
            "s.Supervisor = Careless\n"
            "s.main()\n"
        ),
    )


def ack_before_commit() -> None:
    """As a consumer with automatic acknowledgement."""
    from worker.intake.feed import Feed  # noqa: PLC0415

    taken, acknowledged = Feed.take, Feed.ack

    async def take(self: Feed, most: int) -> Any:
        batch = await taken(self, most)
        await acknowledged(self, batch)
        return batch

    async def ack(self: Feed, batch: Any) -> None:
        _ = self, batch

    Feed.take = take  # type: ignore[method-assign]
    Feed.ack = ack  # type: ignore[method-assign]


BUILDS: Final[dict[str, Callable[[], None]]] = {
    "hosts_apart": hosts_apart,
    "no_fence": no_fence,
    "no_supervisor": no_supervisor,
    "ack_before_commit": ack_before_commit,
}

if __name__ == "__main__":
    BUILDS[os.environ["CHAOS_BROKEN_BUILD"]]()
    sys.exit(main(sys.argv[1:]))
