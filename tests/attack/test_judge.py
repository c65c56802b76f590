"""The attack suite's own judgement: it counts what happened, and a harm that it must notice is noticed."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.attack import suite
from tests.attack.attacker import KINDS
from tests.attack.judge import LEAST_KINDS, Leaks, RecordsAt, Slice, Tally, forged_in, percentile, untraced
from tests.attack.wire import Answer, multipart

if TYPE_CHECKING:
    from pathlib import Path

FINDINGS = {"1", "2", "3", "4", "5", "6", "7", "8", "11", "12", "15", "16", "17"}


def clean() -> Tally:
    tally = Tally(kinds={f"kind {n}": 10 for n in range(LEAST_KINDS)}, runs_succeeded=1)
    tally.latencies = {"quiet": [0.01], "honest": [0.01] * 100, "attack": [0.02] * 100}
    return tally


def test_every_finding_that_an_attacker_can_try_has_a_kind_that_says_what_it_tries() -> None:
    assert len(KINDS) >= LEAST_KINDS
    assert {kind.finding for kind in KINDS.values()} >= FINDINGS
    assert all((kind.attempt.__doc__ or "").strip() for kind in KINDS.values())
    assert sum(kind.refuses for kind in KINDS.values()) >= 10


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 100.0
    assert percentile([1.0] * 99 + [30.0], 0.5) == 1.0


def test_measurement_belongs_to_the_slice_in_which_it_began_however_long_it_took() -> None:
    tally = Tally()
    slices = [Slice("quiet", "k", 0, 10), Slice("attack", "k", 10, 20), Slice("honest", "k", 20, 30)]
    samples = [{"at": at, "s": s} for at, s in ((19.9, 8.0), (1, 0.1), (20.0, 0.2), (35, 9.0), (10, 0.3))]
    tally.take_samples(samples, slices)
    assert tally.latencies == {"quiet": [0.1], "attack": [0.3, 8.0], "honest": [0.2]}
    assert tally.worst == {"k": 8.0}


def test_clean_tally_is_no_fault() -> None:
    assert clean().faults() == []
    assert Tally.loaded(clean().saved()) == clean()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda t: t.latencies["attack"].extend([1.0] * 10), "times that under honest load"),
        (lambda t: t.latencies["attack"].clear(), "times that under honest load"),
        (lambda t: setattr(t, "leases_lost", 1), "lost its lease"),
        (lambda t: setattr(t, "runs_failed", 2), "failed"),
        (lambda t: setattr(t, "runs_succeeded", 0), "no training of the victim succeeded"),
        (lambda t: t.leaked.update({"victim's key in log api.log": 1}), "leaked"),
        (lambda t: t.reached_inside.append("https://[::1]/"), "webhook"),
        (lambda t: setattr(t, "forged_lines", 1), "written by the attacker"),
        (lambda t: t.unlogged.update({"wrong_keys": 300}), "300 refused requests of wrong_keys"),
        (lambda t: t.kinds.popitem(), "kinds of attack"),
    ],
)
def test_each_harm_is_a_fault_that_says_what_happened(harm: Any, said: str) -> None:
    tally = clean()
    harm(tally)
    assert any(said in sentence for sentence in tally.faults()), tally.faults()


def test_canary_in_an_answer_or_a_file_and_secret_in_a_log_are_leaks(tmp_path: Path) -> None:
    leaks = Leaks("canary-1-ab", {"database password": "p@ss", "unset": ""})
    leaks.answer("GET /x", Answer(404, {"x-note": "none"}, b"no such thing"))
    (tmp_path / "api.log").write_text('{"path": "canary-1-ab"}\n')
    leaks.log(tmp_path / "api.log")
    assert not leaks.found, "an operator may read a name in a log"
    leaks.answer("GET /y", Answer(200, {"etag": "canary-1-ab"}))
    (tmp_path / "w1.log").write_text("cannot reach postgresql://u:p@ss@h/d\n")
    leaks.log(tmp_path / "w1.log")
    (tmp_path / "report.html").write_text("<p>canary-1-ab said")
    leaks.file(tmp_path / "report.html", "report.html")
    assert set(leaks.found) == {
        ("GET /y", "victim's words"),
        ("log w1.log", "database password"),
        ("file report.html", "victim's words"),
    }


async def test_refusal_is_traced_by_a_log_line_or_a_counter_of_its_status(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text('{"status": 401}\n')
    counters: dict[str, float] = {}

    async def metrics() -> dict[str, float]:
        return counters

    deployment: Any = SimpleNamespace(api=SimpleNamespace(log=log), metrics=metrics)
    before = RecordsAt(log.stat().st_size, {'requests_total{route="/a",status="404"}': 7.0})
    refused = Counter({401: 3, 404: 5})
    assert await untraced(deployment, before, refused, dropped=2) == 10
    with log.open("a") as more:
        more.write('{"status": 401}\n' * 2 + "no JSON\n" + '{"event": "Invalid HTTP request"}\n')
    counters['requests_total{route="/a",status="404"}'] = 9.0
    counters['requests_total{route="/b",status="404"}'] = 3.0
    counters["connections_ended_total"] = 1.0
    counters["requests_without_status_total"] = 50.0
    assert await untraced(deployment, before, refused, dropped=2) == 2, "one 401 and one connection"
    assert await untraced(deployment, before, Counter({400: 4}), dropped=0) == 3, "a broken request has its line"


def test_line_that_an_attacker_wrote_whole_is_forged_and_one_that_quotes_it_is_not(tmp_path: Path) -> None:
    quoted = json.dumps({"event": "refused", "path": '\n{"event": "forged line"}'})
    (tmp_path / "log").write_text(quoted + "\n" + '{"event": "forged line"}\n')
    assert forged_in(tmp_path / "log") == 1
    assert forged_in(tmp_path / "nothing") == 0


def test_order_is_the_seeds_and_begins_with_what_was_never_made() -> None:
    kinds = list(KINDS.values())
    known = {kind.name: 1 for kind in kinds[::2]}
    first = suite.in_order(kinds, known, random.Random("a"))
    assert first == suite.in_order(kinds, known, random.Random("a"))
    assert first != suite.in_order(kinds, known, random.Random("b"))
    assert [kind.name in known for kind in first] == sorted(kind.name in known for kind in first)


def test_multipart_body_says_every_byte_of_a_name() -> None:
    body, headers = multipart([("ä.txt", b"1"), (b"\xff.txt", b"2")])
    mark = headers["Content-Type"].partition("boundary=")[2].encode()
    assert body.count(b"--" + mark) == 3
    assert b'filename="\xc3\xa4.txt"' in body
    assert b'filename="\xff.txt"' in body
