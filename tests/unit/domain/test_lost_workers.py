"""Which of a lost worker's runs the loss is counted against, and when a run has lost too many."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace

import pytest

from worker.domain.lost_workers import OWN_PROCESS_WEIGHT, SHARED, Orphan, is_ended, suspects_of
from worker.domain.moves import Limits, Move, Moves
from worker.domain.run import Fence

LIMIT = 3


def orphan(phase: str = "train", losses: int = 0, **changes: int) -> Orphan:
    """Of an organization of its own, unless one is named."""
    made = Orphan(Fence(uuid.uuid4(), 1), uuid.uuid4().int, 0, 0, "w1", phase, 0, losses, phase, 0, 1.0)
    return replace(made, **changes)


def moves(**limits: int) -> Moves:
    return Moves(Limits(lost_workers=LIMIT, **limits), lambda: 0.5)


def role(move: Move) -> str:
    return move.fields["reason_code"]


@pytest.mark.parametrize("phase", ["load", "publish"])
def test_whoever_the_workers_own_process_worked_on_is_the_suspect_and_all_others_are_bystanders(phase: str):
    waiting = [orphan("prepare"), orphan("train"), orphan("evaluate")]
    worked_on = orphan(phase)
    assert suspects_of([*waiting, worked_on]) == [worked_on]


def test_runs_of_which_none_is_likelier_are_all_suspects():
    runs = [orphan("train"), orphan("prepare"), orphan("train")]
    assert suspects_of(runs) == runs
    assert suspects_of([]) == []


def test_of_several_the_one_that_lost_most_workers_at_its_point_is_the_suspect():
    again = orphan("train", losses=1)
    assert suspects_of([orphan("train"), again, orphan("evaluate")]) == [again]
    again = orphan("load", losses=1)
    assert suspects_of([orphan("load"), again, orphan("train", losses=2)]) == [again]


def test_a_run_struck_by_dying_machines_does_not_shield_one_that_stops_its_worker_while_loading():
    for losses in range(OWN_PROCESS_WEIGHT):
        loading = orphan("load")
        assert suspects_of([orphan("train", losses=losses), loading]) == [loading]


def test_a_trainer_that_takes_its_host_down_again_and_again_is_not_shielded_by_a_run_that_happens_to_load():
    again = orphan("train", losses=OWN_PROCESS_WEIGHT + 1)
    assert suspects_of([again, orphan("load")]) == [again]


def test_bystanders_go_back_at_once_and_are_charged_nothing():
    bystander, suspect = orphan("train"), orphan("load")
    to_bystander, to_suspect = moves().of_lost_worker([bystander, suspect])
    assert (to_bystander.to_status, role(to_bystander)) == (2, "bystander_of_lost_worker")
    assert not {"failed", "handed_over", "worker_losses", "delay_s"} & set(to_bystander.fields)
    assert (to_suspect.to_status, role(to_suspect)) == (2, "lease_expired")
    assert (to_suspect.fields["worker_losses"], to_suspect.fields["lost_in_phase"]) == (1, "load")
    assert "failed" not in to_suspect.fields


def test_the_only_suspect_is_ended_with_its_limit_of_lost_workers_and_a_sentence_that_says_why():
    ends = [moves().of_lost_worker([orphan("load", losses=losses), orphan("train")])[0] for losses in range(LIMIT)]
    assert [end.to_status for end in ends] == [2] * (LIMIT - 1) + [5]
    assert role(ends[-1]) == "lost_worker_repeatedly"
    assert ends[-1].fields["failure_reason"] == (
        "The training was stopped: 3 times in a row its machine was lost before it got further."
    )
    assert "phase load" in ends[-1].fields["failure_detail"]


def test_equal_suspects_take_several_times_as_many_lost_workers_and_come_back_one_after_the_other():
    def all_end_at(losses: int) -> list[int]:
        return [move.to_status for move in moves().of_lost_worker([orphan(losses=losses - 1) for _ in range(3)])]

    assert all_end_at(LIMIT * SHARED - 1) == [2, 2, 2]
    assert all_end_at(LIMIT * SHARED) == [5, 5, 5]
    first = [move.fields["delay_s"] for move in moves().of_lost_worker([orphan() for _ in range(3)])]
    again = [move.fields["delay_s"] for move in moves().of_lost_worker([orphan(losses=1) for _ in range(3)])]
    assert len(set(first)) == 1
    assert again == [again[0], 2 * again[0], 3 * again[0]]


def test_a_suspect_may_be_moved_no_more_often_than_a_hand_over():
    [move] = moves().of_lost_worker([orphan("train", hand_overs=50, failures=2)])
    assert (move.to_status, role(move)) == (5, "too_many_hand_overs")
    assert move.fields["only_if_lease_dead"]


def test_no_number_of_workers_lost_by_others_ends_a_bystander():
    [move, _] = moves().of_lost_worker([orphan("train", hand_overs=50, failures=2), orphan("load")])
    assert (move.to_status, role(move)) == (2, "bystander_of_lost_worker")


def test_runs_of_one_customer_that_stop_workers_together_do_not_shield_each_other():
    together = [orphan("load", losses=LIMIT - 1, organization_id=1) for _ in range(3)]
    assert [move.to_status for move in moves().of_lost_worker(together)] == [5, 5, 5]
    with_another = [*together, orphan("load", losses=LIMIT - 1, organization_id=2)]
    assert [move.to_status for move in moves().of_lost_worker(with_another)] == [2, 2, 2, 2]


def test_runs_of_one_customer_on_a_dying_host_are_as_likely_innocent_as_anybodys():
    training = [orphan("train", losses=LIMIT - 1, organization_id=1) for _ in range(8)]
    assert {move.to_status for move in moves().of_lost_worker(training)} == {2}


def test_a_limit_is_a_limit_for_one_suspect_and_several():
    assert [is_ended(losses, [orphan()], LIMIT) for losses in (1, 2, 3, 4)] == [False, False, True, True]
    assert not is_ended(3, [orphan(), orphan()], LIMIT)
    assert is_ended(LIMIT * SHARED, [orphan(), orphan()], LIMIT)


# --- over many losses ---------------------------------------------------------------------------------------------


class Fleet:
    """Runs that are lost with workers over and over, with what the database keeps of each."""

    def __init__(self, seed: int, runs: int) -> None:
        self.chance = random.Random(seed)
        self.runs = [orphan() for _ in range(runs)]
        self.over: dict[Fence, str] = {}

    def lose(self, lost: list[int]) -> None:
        """A worker is lost with these runs."""
        group = [self.runs[n] for n in lost if self.runs[n].fence not in self.over]
        for run, move in zip(group, moves().of_lost_worker(group), strict=True):
            if move.to_status == 5:
                self.over[run.fence] = role(move)
            n = self.runs.index(run)
            self.runs[n] = replace(
                run,
                losses=move.fields.get("worker_losses", run.losses),
                hand_overs=run.hand_overs + bool(move.fields.get("handed_over")),
                failures=run.failures + bool(move.fields.get("failed")),
            )

    def gets_further(self, n: int) -> None:
        self.runs[n] = replace(self.runs[n], steps_done=self.runs[n].steps_done + 1, losses=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_stops_its_worker_while_loading_ends_after_three_and_no_bystander_with_it(seed: int):
    fleet = Fleet(seed, 8)
    fleet.runs[0] = orphan("load")
    losses = 0
    while fleet.runs[0].fence not in fleet.over:
        fleet.lose([0, *fleet.chance.sample(range(1, 8), 3)])
        losses += 1
    assert losses == LIMIT
    assert set(fleet.over) == {fleet.runs[0].fence}
    assert {run.failures for run in fleet.runs[1:]} == {0}


@pytest.mark.parametrize("seed", range(5))
def test_a_trainer_that_takes_its_host_down_is_found_among_others_that_get_further(seed: int):
    fleet = Fleet(seed, 8)
    losses = 0
    while fleet.runs[0].fence not in fleet.over:
        fleet.lose(list(range(8)))
        losses += 1
        for n in range(1, 8):
            fleet.gets_further(n)
    assert losses == LIMIT
    assert set(fleet.over) == {fleet.runs[0].fence}


def test_machines_that_die_by_themselves_end_no_run_that_gets_further_between_two_deaths():
    fleet = Fleet(1, 8)
    for _ in range(50):
        fleet.lose(list(range(8)))
        for n in range(8):
            fleet.gets_further(n)
    assert not fleet.over


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_end_no_run_earlier_than_when_every_loss_was_a_failure(seed: int):
    """Each loss used to be charged to every run there, and the third ended it."""
    fleet = Fleet(seed, 12)
    lost = dict.fromkeys(range(12), 0)
    for _ in range(60):
        group = fleet.chance.sample(range(12), 3)
        before = set(fleet.over)
        for n in group:
            lost[n] += fleet.runs[n].fence not in before
        fleet.lose(group)
        for n in range(12):
            if fleet.runs[n].fence in set(fleet.over) - before:
                assert lost[n] >= LIMIT
            elif fleet.chance.random() < 0.3 and fleet.runs[n].fence not in fleet.over:
                fleet.gets_further(n)


def test_no_run_is_lost_for_ever():
    fleet = Fleet(1, 4)
    for _ in range(200):
        fleet.lose([0, 1, 2, 3])
    assert len(fleet.over) == 4
