"""The store against a model of it: Hypothesis looks for a story that ends differently in Postgres than on paper.

Concurrent connections, a clock in the test's hand, owners that come late, repeat themselves and contradict others.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from schemas.failures import FailureClass
from schemas.status import Gate
from tests.store_support import ClockedDatabase, HeldClock, Stage, success
from worker.domain.moves import Limits
from worker.domain.outcome import Cancelled, Failed, HandedOver, Succeeded
from worker.domain.run import Claim, Request
from worker.store.models import ModelStore
from worker.store.runs import RunStore

if TYPE_CHECKING:
    from worker.domain.moves import Move
    from worker.domain.run import ClaimedRun

LEASE_S = 60.0
LIMITS = Limits(failures=3, hand_overs=4, wait_s=5_000.0)
OUTCOMES = {
    "success": success(),
    "refused": Succeeded({"wer": 1}, Gate.NO_IMPROVEMENT, None),
    "data": Failed(FailureClass.DATA, "too_little", "Too little."),
    "crash": Failed(FailureClass.CRASHED, "signal_9", "It stopped."),
    "capacity": Failed(FailureClass.CAPACITY, "no_device", "No machine."),
    "hand_over": HandedOver(),
    "cancelled": Cancelled(),
}
CAPS = {"one": 1, "two": 2, "many": 50}


@dataclass
class OnPaper:
    """What a run should be."""

    organization: str
    status: int = 2
    attempt: int = 0
    failures: int = 0
    hand_overs: int = 0
    cancel: bool = False
    deleted: bool = False
    worker: str | None = None
    lease_until: float = 0.0
    due: float = 0.0
    history: list[int] = field(default_factory=lambda: [2])

    def move(self, to: int) -> None:
        self.status = to
        self.history.append(to)
        if to != 3:
            self.worker = None


class StoreMachine(RuleBasedStateMachine):
    url: str
    claims = Bundle("claims")
    moves = Bundle("moves")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = HeldClock()
        self.now = 0.0
        self.paper: dict[uuid.UUID, OnPaper] = {}
        self.settled: dict[uuid.UUID, Any] = {}
        self.wait(self.begin())

    def wait(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def begin(self) -> None:
        self.database = ClockedDatabase(self.url, self.clock, size=6, answer_s=10)
        await self.database.execute("truncate organizations cascade")
        models = ModelStore(self.database)
        self.runs = RunStore(self.database, LIMITS, lambda: 0.5)
        base = await models.create_base_language("en", "English", "/base")
        await self.database.execute("update base_languages set running = 0")
        self.stage = Stage(self.url, self.clock, self.database, self.runs, models, base, LIMITS)
        self.stage._made = uuid.uuid4().int % 10**12  # keys of models are never used twice, here neither
        for name, cap in CAPS.items():
            await self.stage.organization(name, cap)

    def teardown(self) -> None:
        self.wait(self.database.close())
        self.loop.close()

    # --- the story ---------------------------------------------------------------------------------------------

    @rule(organization=st.sampled_from(sorted(CAPS)), priority=st.integers(-2, 2))
    def somebody_asks(self, organization: str, priority: int) -> None:
        owner = self.stage.organizations[organization]
        model = self.wait(self.stage.model(owner))
        request = Request(uuid.uuid4(), model, owner, self.clock.now, priority=priority)
        again = Request(uuid.uuid4(), model, owner, self.clock.now)

        async def together() -> list[list[bool]]:
            stores = [RunStore(self.database, LIMITS, lambda: 0.5) for _ in range(2)]
            return list(await asyncio.gather(*(store.register([request]) for store in stores)))

        assert sorted(self.wait(together())) == [[False], [True]]
        assert self.wait(self.runs.register([again])) == [False], "a model trains once at a time"
        self.paper[request.run_id] = OnPaper(organization, due=self.now)

    @rule(seconds=st.sampled_from([1.0, 20.0, LEASE_S, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    @rule(target=claims, slots=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def workers_claim_at_once(self, slots: list[int]) -> Any:
        async def together() -> list[list[ClaimedRun]]:
            return list(
                await asyncio.gather(*(self.runs.claim(Claim.of(f"w{n}", LEASE_S, k)) for n, k in enumerate(slots)))
            )

        found = []
        for n, (taken, k) in enumerate(zip(self.wait(together()), slots, strict=True)):
            assert len(taken) <= k
            for run in taken:
                paper = self.paper[run.id]
                assert (paper.status, paper.attempt + 1) == (2, run.attempt)
                assert paper.due <= self.now, "claimed before it was due"
                assert (run.failures, run.cancel_requested) == (paper.failures, paper.cancel)
                paper.attempt += 1
                paper.move(3)
                paper.worker, paper.lease_until = f"w{n}", self.now + LEASE_S
                found.append(run)
        for name, cap in CAPS.items():
            assert sum(p.status == 3 for p in self.paper.values() if p.organization == name) <= cap
        if sum(slots) > len(found):  # slots were left: nothing that could run may wait
            for name, cap in CAPS.items():
                held = sum(p.status == 3 for p in self.paper.values() if p.organization == name)
                due = [p for p in self.paper.values() if p.organization == name and p.status == 2 and p.due <= self.now]
                assert not due or held >= cap or len(slots) > 1, f"{name} waits for a free slot"
        return multiple(*found)

    @rule(target=moves, run=claims, outcome=st.sampled_from(sorted(OUTCOMES)))
    def owner_ends(self, run: ClaimedRun, outcome: str) -> Any:
        """Any owner of any time, in time or late."""
        move = self.runs.moves.after(run, OUTCOMES[outcome])
        self.expect(move, self.wait(self.runs.settle(move)))
        return move

    @rule(target=moves, run=claims, outcomes=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=2, max_size=4))
    def several_end_the_same_run_at_once(self, run: ClaimedRun, outcomes: list[str]) -> Any:
        wanted = [self.runs.moves.after(run, OUTCOMES[outcome]) for outcome in outcomes]

        async def together() -> list[Any]:
            stores = [RunStore(self.database, LIMITS, lambda: 0.5) for _ in wanted]
            return list(await asyncio.gather(*(s.settle(m) for s, m in zip(stores, wanted, strict=True))))

        ends = self.wait(together())
        won = [(move, end) for move, end in zip(wanted, ends, strict=True) if end is not None]
        assert len(won) <= 1
        owned = self.owned(run.id, run.attempt)
        assert bool(won) == owned
        for move, end in won:
            self.expect(move, end)
        return multiple(*(move for move, _ in won))

    @rule(move=moves)
    def answer_was_lost_and_the_owner_asks_again(self, move: Move) -> None:
        assert self.wait(self.runs.settle(move)) == self.settled.get(move.transition_id)

    @rule(run=claims)
    def owner_renews(self, run: ClaimedRun) -> None:
        paper = self.paper[run.id]
        worker = f"w{0}" if paper.worker is None else paper.worker
        answer = self.wait(self.runs.renew(worker, [run.fence], LEASE_S))
        if self.owned(run.id, run.attempt):
            assert answer == {run.fence: paper.cancel}
            paper.lease_until = self.now + LEASE_S
        else:
            assert answer == {}

    @rule(target=moves)
    def rescuers_sweep_while_owners_renew(self) -> Any:
        """Two sweeps and every renewal at once: each dead lease is moved once, or renewed, never both."""
        by_worker = self.wait(self.runs.orphans(100))
        orphans = [orphan for of_one in by_worker for orphan in of_one]
        owners_alive = {p.worker for p in self.paper.values() if p.status == 3 and p.lease_until >= self.now}
        dead = {run for run, p in self.paper.items() if p.status == 3 and p.worker not in owners_alive}
        assert {orphan.fence.run_id for orphan in orphans} == dead
        wanted = [move for of_one in by_worker for _ in range(2) for move in self.runs.moves.of_lost_worker(of_one)]

        async def together() -> tuple[list[Any], list[dict[Any, bool]]]:
            stores = [RunStore(self.database, LIMITS, lambda: 0.5) for _ in wanted]
            settling = asyncio.gather(*(s.settle(m) for s, m in zip(stores, wanted, strict=True)))
            renewing = asyncio.gather(*(self.runs.renew(o.worker_id, [o.fence], LEASE_S) for o in orphans[:2]))
            return list(await settling), list(await renewing)

        ends, renewed = self.wait(together())
        kept = {fence.run_id for answer in renewed for fence in answer}
        moved = [(move, end) for move, end in zip(wanted, ends, strict=True) if end is not None]
        assert len({move.fence.run_id for move, _ in moved}) == len(moved)
        assert {move.fence.run_id for move, _ in moved} == dead - kept
        for run in kept:
            self.paper[run].lease_until = self.now + LEASE_S
        for move, end in moved:
            self.expect(move, end)
        return multiple(*(move for move, _ in moved))

    @rule(target=moves)
    def overdue_waits_end(self) -> Any:
        done = []
        for fence, waited_s in self.wait(self.runs.overdue_waiting(100)):
            move = self.runs.moves.of_overdue(fence, waited_s)
            end = self.wait(self.runs.settle(move))
            assert end is not None
            self.expect(move, end)
            done.append(move)
        return multiple(*done)

    @rule(chosen=st.integers(0, 10**6))
    def somebody_cancels(self, chosen: int) -> None:
        if not self.paper:
            return
        run = list(self.paper)[chosen % len(self.paper)]
        paper = self.paper[run]
        answer = self.wait(self.runs.request_cancel(run))
        assert answer["asked"] == (paper.status in (2, 3))
        if paper.status in (2, 3):
            paper.cancel = True
        if paper.status == 2:
            from worker.domain.run import Fence  # noqa: PLC0415

            move = self.runs.moves.cancel_queued(Fence(run, answer["attempt"]))
            self.expect(move, self.wait(self.runs.settle(move)))

    @rule(chosen=st.integers(0, 10**6))
    def model_is_deleted(self, chosen: int) -> None:
        if not self.paper:
            return
        run = list(self.paper)[chosen % len(self.paper)]
        self.wait(
            self.database.execute(
                "update custom_models set deleted_at = now() where id = (select custom_model_id from training_runs where id = $1)",
                run,
            )
        )
        self.paper[run].deleted = True

    @rule(claim=consumes(claims))
    def a_worker_forgets(self, claim: ClaimedRun) -> None:
        """Killed: nobody will ever end this attempt but a rescuer."""

    # --- the paper ---------------------------------------------------------------------------------------------

    def owned(self, run: uuid.UUID, attempt: int) -> bool:
        paper = self.paper[run]
        return paper.status == 3 and paper.attempt == attempt

    def expect(self, move: Move, end: Any) -> None:
        """Make the move on paper and compare."""
        paper = self.paper[move.fence.run_id]
        if paper.status != move.from_status or paper.attempt != move.fence.attempt:
            assert end is None, "a move out of a status that the run does not have"
            return
        assert end is not None
        self.settled[move.transition_id] = end
        to = 1 if paper.cancel or paper.deleted else int(move.to_status)
        paper.failures += bool(move.fields.get("failed"))
        paper.hand_overs += bool(move.fields.get("handed_over"))
        paper.move(to)
        paper.due = self.now + float(move.fields.get("delay_s") or 0)
        assert int(end.status) == to

    @invariant()
    def database_says_what_the_paper_says(self) -> None:
        rows = self.wait(self.database.fetch("select * from training_runs"))
        assert len(rows) == len(self.paper)
        for row in rows:
            paper = self.paper[row["id"]]
            on_paper = (paper.status, paper.attempt, paper.failures, paper.hand_overs, paper.worker)
            assert (row["status"], row["attempt"], row["failures"], row["hand_overs"], row["worker_id"]) == on_paper
            assert row["sequence"] == len(paper.history)
        versions = self.wait(self.database.fetch("select run_id, attempt from model_versions"))
        for version in versions:
            assert self.paper[version["run_id"]].status == 4
            assert self.paper[version["run_id"]].attempt == version["attempt"]

    @invariant()
    def counters_and_history_agree(self) -> None:
        self.wait(self.stage.books_agree())


def test_store_behaves_as_its_model_says(database_url: str) -> None:
    machine = type("Machine", (StoreMachine,), {"url": database_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
