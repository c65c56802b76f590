"""Runs: registered, claimed, renewed, settled. One method per named query; ids make every write safe to repeat."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from schemas.status import TrainingStatus
from worker.domain.lost_workers import Orphan
from worker.domain.moves import Limits, Move, Moves, Settled
from worker.domain.run import Checkpoint, Claim, ClaimedRun, Fence, Progress, Request, RunInputs
from worker.errors import RunLost
from worker.store.batch import Batch
from worker.store.database import Database, Record, queries

_Q: Final = queries("runs")


class RunStore:
    """Every statement on runs.

    Args:
        database: the pool.
        limits: what a run may use up.
        random: uniform in [0, 1), for jitter.
    """

    def __init__(self, database: Database, limits: Limits, random: Callable[[], float]) -> None:
        self._database = database
        self._limits = limits
        self._random = random
        self.moves: Final = Moves(limits, random)
        # Ends come in crowds when runs are short, and each statement waits for the same base language's counter:
        # one at a time with many in it is faster than two with few. Four milliseconds delay nobody's training.
        self._settling: Batch[Move, Settled | None] = Batch(
            self._settle, key=lambda move: move.fence.run_id, lanes=1, gather_s=0.004
        )

    # --- asked for -----------------------------------------------------------------------------------------------

    async def register(self, requests: Sequence[Request]) -> list[bool]:
        """Make the runs' rows, their first transitions and their events. False: that one cannot be; see ``explain``."""
        arguments = self.registration(requests, ["event"])
        return _whether_made(requests, await self._database.fetch(_Q["register_runs"], *arguments))

    async def register_and_claim(
        self, requests: Sequence[Request], claim: Claim
    ) -> tuple[list[bool], list[ClaimedRun]]:
        """The same, and a claim in the same transaction: what need not wait begins one commit earlier.

        Raises:
            DatabaseAway: everything may have happened; ask ``claims_of``, and registering again is harmless.
        """
        async with self._database.brief_transaction() as connection:
            made = await connection.fetch(_Q["register_runs"], *self.registration(requests, ["event"]))
            claimed = await connection.fetch(_Q["claim_runs"], *claim.arguments())
        return _whether_made(requests, made), _claimed(claimed)

    def registration(self, requests: Sequence[Request], kinds: list[str]) -> tuple[object, ...]:
        """Arguments of the ``register_runs`` query, for whoever runs it in a larger transaction; without repeats."""
        first = {request.run_id: request for request in reversed(requests)}.values()
        return (
            [request.run_id for request in first],
            [request.custom_model_id for request in first],
            [request.organization_id for request in first],
            [request.requested_at for request in first],
            [uuid4() for _ in first],
            [request.traceparent for request in first],
            [request.parameters or {} for request in first],
            [request.priority for request in first],
            self._limits.wait_s,
            kinds,
        )

    async def explain(self, requests: Sequence[Request]) -> dict[UUID, Record]:
        """Why requests were not registered: known, same_ids, model_known, model_deleted, active_run_id by run id."""
        rows = await self._database.fetch(
            _Q["explain_requests"],
            [request.run_id for request in requests],
            [request.custom_model_id for request in requests],
            [request.organization_id for request in requests],
        )
        return {row["run_id"]: row for row in rows}

    # --- owned ---------------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> list[ClaimedRun]:
        """Take as many due runs as the claim has slots, in fair order.

        Raises:
            DatabaseAway: some may have been claimed; ask ``claims_of``.
        """
        # Another claim may have been faster, or every organization that waits was being moved, which takes
        # milliseconds: look again while there is work. What was claimed begins at once.
        for look in range(8):
            rows = await self._database.fetch(_Q["claim_runs"], *claim.arguments())
            claimed = _claimed(rows)
            if claimed or not rows[0]["more"]:
                break
            await asyncio.sleep(0.001 * 2**look * (0.5 + self._random()))
        return claimed

    async def claims_of(self, claim: Claim) -> list[ClaimedRun]:
        """The runs that a claim took, when its answer was lost on the wire."""
        return _claimed(await self._database.fetch(_Q["claims_of"], list(claim.transition_ids)))

    async def renew(self, worker_id: str, fences: Sequence[Fence], lease_s: float) -> dict[Fence, bool]:
        """Renew all leases at once. What is not in the answer is lost; True: somebody asked to cancel the run."""
        rows = await self._database.fetch(
            _Q["renew_leases"],
            worker_id,
            [fence.run_id for fence in fences],
            [fence.attempt for fence in fences],
            lease_s,
        )
        return {Fence(row["id"], row["attempt"]): row["cancel_requested"] for row in rows}

    async def record_progress(self, notes: Sequence[Progress]) -> None:
        """Write how far several runs are."""
        await self._database.execute(
            _Q["record_progress"],
            [note.fence.run_id for note in notes],
            [note.fence.attempt for note in notes],
            [note.phase for note in notes],
            [note.percent for note in notes],
            [note.eta_s for note in notes],
            [note.live for note in notes],
        )

    async def fix_inputs(self, fence: Fence, inputs: RunInputs) -> RunInputs:
        """Fix the run's inputs, or get those fixed before.

        Raises:
            RunLost: the attempt is not the owner.
        """
        row = await self._database.fetch_row(
            _Q["fix_inputs"], fence.run_id, fence.attempt, inputs.model_dump(mode="json")
        )
        if row is None:
            raise RunLost(str(fence))
        return RunInputs.model_validate(row["inputs"])

    async def follow_recipe(self, fence: Fence, settled: dict[str, Any]) -> None:
        """Let the run go on with another version of its recipe: that version, and the settings as it has them.

        Raises:
            RunLost: the attempt is not the owner.
        """
        row = await self._database.fetch_row(_Q["follow_recipe"], fence.run_id, fence.attempt, settled)
        await self._owned(row, fence)

    async def record_log(self, fence: Fence, address: str) -> None:
        """Say where the attempt's log is kept."""
        await self._owned(await self._database.fetch_row(_Q["record_log"], fence.run_id, fence.attempt, address), fence)

    async def record_data_report(self, fence: Fence, report: dict[str, Any]) -> None:
        """Say what became of the data, before the run ends."""
        row = await self._database.fetch_row(_Q["record_data_report"], fence.run_id, fence.attempt, report)
        await self._owned(row, fence)

    async def register_checkpoint(self, fence: Fence, checkpoint: Checkpoint) -> None:
        """From here on the checkpoint exists.

        Raises:
            RunLost: the attempt is not the owner.
        """
        row = await self._database.fetch_row(
            _Q["register_checkpoint"],
            fence.run_id,
            fence.attempt,
            checkpoint.steps_done,
            checkpoint.address,
            checkpoint.sha256,
            checkpoint.bytes,
            checkpoint.recipe_version,
        )
        await self._owned(row, fence)

    async def checkpoints(self, run_id: UUID) -> list[Checkpoint]:
        """Registered checkpoints of a run, the newest first."""
        rows = await self._database.fetch(_Q["checkpoints_of_run"], run_id)
        return [
            Checkpoint(
                row["attempt"],
                row["steps_done"],
                row["address"],
                row["sha256"],
                row["bytes"],
                row["recipe_version"],
            )
            for row in rows
        ]

    async def forget_checkpoints(self, fence: Fence, steps: Iterable[int]) -> None:
        """Prune checkpoints of this attempt."""
        await self._database.execute(_Q["forget_checkpoints"], fence.run_id, fence.attempt, list(steps))

    async def store_step_output(  # noqa: PLR0913 - a row has that many columns
        self,
        fence: Fence,
        content_key: str,
        step: str,
        address: str,
        sha256: str,
        size: int,
        result: dict[str, Any],
    ) -> None:
        """Keep what a step made, so that a repeat is free.

        Raises:
            RunLost: the attempt is not the owner.
        """
        row = await self._database.fetch_row(
            _Q["store_step_output"],
            fence.run_id,
            fence.attempt,
            content_key,
            step,
            address,
            sha256,
            size,
            result,
        )
        await self._owned(row, fence)

    async def find_step_output(self, organization_id: int, content_key: str) -> Record | None:
        """What a step made earlier from the same content: address, sha256, bytes, result."""
        return await self._database.fetch_row(_Q["find_step_output"], organization_id, content_key)

    async def forget_step_output(self, organization_id: int, content_key: str) -> None:
        """Its bytes are gone or spoiled."""
        await self._database.execute(_Q["forget_step_output"], organization_id, content_key)

    @staticmethod
    async def _owned(row: Record | None, fence: Fence) -> None:
        if row is None:
            raise RunLost(str(fence))

    # --- ended ---------------------------------------------------------------------------------------------------

    async def settle(self, move: Move) -> Settled | None:
        """End an attempt: one statement with history, outbox and version, shared with whoever settles now.

        Safe to repeat: a move that finds its own id in the history has succeeded. None: the run was lost to us.

        Raises:
            DatabaseAway: the fate is unknown; repeat with the same move.
        """
        return await self._settling(move)

    async def _settle(self, moves: list[Move]) -> list[Settled | None]:
        settled = await self._moved(moves)
        # The first sending of a move may still have been at work when its connection broke: a repeat waits for it,
        # and yet sees the history as it was before.
        unmoved = [move for move in moves if move.transition_id not in settled]
        if unmoved:
            settled |= await self._moved(unmoved)
        return [settled.get(move.transition_id) for move in moves]

    async def _moved(self, moves: list[Move]) -> dict[UUID, Settled]:
        rows = await self._database.fetch(_Q["settle_runs"], [move.row() for move in moves])
        return {
            row["transition_id"]: Settled(TrainingStatus(row["status"]), row["sequence"])
            for row in rows
            if row["status"] is not None
        }

    async def orphans(self, most: int) -> list[list[Orphan]]:
        """Runs whose lease has died, by the worker that left them, the longest dead first.

        A worker's runs come together, once all of them are dead: which of them the loss is counted for depends on all.

        Args:
            most: runs in all; the first worker's come even where they are more.
        """
        by_worker: dict[str, list[Orphan]] = {}
        for row in await self._database.fetch(_Q["orphans"], most):
            orphan = Orphan(
                fence=Fence(row["id"], row["attempt"]),
                organization_id=row["organization_id"],
                failures=row["failures"],
                hand_overs=row["hand_overs"],
                worker_id=row["worker_id"],
                phase=row["phase"],
                steps_done=row["steps_done"],
                losses=row["losses"],
                furthest_phase=row["furthest_phase"],
                furthest_steps=row["furthest_steps"],
                dead_s=row["dead_s"],
            )
            by_worker.setdefault(orphan.worker_id, []).append(orphan)
        return list(by_worker.values())

    async def overdue_waiting(self, most: int) -> list[tuple[Fence, float]]:
        """Runs that have waited longer than anybody may, with the seconds waited."""
        rows = await self._database.fetch(_Q["overdue_waiting"], most)
        return [(Fence(row["id"], row["attempt"]), row["waited_s"]) for row in rows]

    async def cancelled_untidied(self, most: int) -> list[tuple[UUID, int]]:
        """Cancelled runs whose artifacts are still there, with their organizations."""
        rows = await self._database.fetch(_Q["cancelled_untidied"], most)
        return [(row["id"], row["organization_id"]) for row in rows]

    async def forget_cancelled(self, run_id: UUID, organization_id: int) -> bool:
        """Let nobody find what a cancelled run made. False: another run of its model may be reading it now."""
        async with self._database.transaction() as connection:
            # A statement of its own: the look below must see every claim that came before the lock.
            await connection.execute(_Q["lock_organization"], organization_id)
            return await connection.fetchrow(_Q["forget_cancelled"], run_id) is not None

    async def mark_tidied(self, run_id: UUID) -> None:
        """The artifacts of a cancelled run are gone."""
        await self._database.execute(_Q["mark_tidied"], run_id)

    async def request_cancel(self, run_id: UUID) -> Record | None:
        """Ask a run to stop: (id, status, attempt, asked); None for an unknown id."""
        return await self._database.fetch_row(_Q["request_cancel"], run_id)

    # --- looked at -----------------------------------------------------------------------------------------------

    async def by_id(self, run_id: UUID) -> Record | None:
        """One run, whole."""
        return await self._database.fetch_row(_Q["run_by_id"], run_id)

    async def transitions(self, run_id: UUID) -> Sequence[Record]:
        """The run's history, in order."""
        return await self._database.fetch(_Q["transitions_of_run"], run_id)

    async def list(self, statuses: Sequence[int] | None, model_id: int | None, most: int) -> Sequence[Record]:
        """Runs for an operator's eyes, the newest first."""
        return await self._database.fetch(_Q["list_runs"], statuses, model_id, most)


def _whether_made(requests: Sequence[Request], rows: Sequence[Record]) -> list[bool]:
    created = {row["run_id"] for row in rows}
    made = []
    for request in requests:
        made.append(request.run_id in created)
        created.discard(request.run_id)  # a repeat makes nothing
    return made


def _claimed(rows: Sequence[Record]) -> list[ClaimedRun]:
    return [_run(row) for row in rows if row["id"] is not None]


def _run(row: Record) -> ClaimedRun:
    inputs = row["inputs"]
    return ClaimedRun(
        id=row["id"],
        custom_model_id=row["custom_model_id"],
        organization_id=row["organization_id"],
        base_language_id=row["base_language_id"],
        attempt=row["attempt"],
        failures=row["failures"],
        hand_overs=row["hand_overs"],
        inputs=None if inputs is None else RunInputs.model_validate(inputs),
        wanted_parameters=row["wanted_parameters"],
        ran_s=row["ran_s"],
        waited_s=row["waited_s"],
        created_at=row["created_at"],
        requested_at=row["requested_at"],
        traceparent=row["traceparent"],
        cancel_requested=row["cancel_requested"],
        bystander_losses=row["bystander_losses"],
    )
