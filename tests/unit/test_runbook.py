"""The runbook knows every alert, failure class, failure code and dead-letter reason that exists."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

from schemas.failures import FailureClass
from worker.domain.retry import RULES
from worker.intake.handler import DeadReason

RUNBOOK = Path("deploy/runbook.md").read_text(encoding="utf-8")
RULES_FILE = Path("deploy/prometheus/rules.yaml").read_text(encoding="utf-8")
CODED = {"bad_data": 0, "LauncherUnavailable": 0, "_infrastructure": 0, "InputError": 0, "DeliveryError": 0}
"""Calls whose argument of this place is a code, though no failure class stands before it."""


def test_every_alert_has_an_entry_that_says_what_it_means_how_to_look_and_what_to_do():
    for alert in re.findall(r"- alert: (\w+)", RULES_FILE):
        entry = re.search(rf"^### {alert}\n(.*?)(?=^##)", RUNBOOK + "\n##", re.MULTILINE | re.DOTALL)
        assert entry, alert
        for part in ("**Means**", "**Look**", "**Do**"):
            assert part in entry[1], f"{alert} lacks {part}"
        assert f"runbook: deploy/runbook.md#{alert.lower()}" in RULES_FILE


def test_no_entry_is_about_an_alert_that_is_gone():
    assert set(re.findall(r"^### (Training\w+)$", RUNBOOK, re.MULTILINE)) == set(
        re.findall(r"- alert: (\w+)", RULES_FILE)
    )


def test_every_failure_class_is_documented_as_the_retry_policy_has_it():
    for failure_class in FailureClass:
        rule = RULES[failure_class]
        [row] = re.findall(rf"^\| `{failure_class.value}` \| (.+) \|$", RUNBOOK, re.MULTILINE)
        retried, *_ = row.split(" | ")
        assert retried == retry_words(failure_class), f"{failure_class}: write {retry_words(failure_class)!r}"
        assert rule.operator in row, f"{failure_class}: the operator's sentence differs"


def retry_words(failure_class: FailureClass) -> str:
    rule = RULES[failure_class]
    if not rule.retry:
        return "no"
    return f"after {rule.first_pause_s:g} s, doubling" + ("" if rule.counts else "; not counted")


def test_every_failure_code_found_in_the_source_is_documented():
    missing = sorted(codes_of_the_source() - documented_codes())
    assert not missing, missing


def test_no_documented_failure_code_is_gone_from_the_source():
    gone = sorted(documented_codes() - codes_of_the_source())
    assert not gone, gone


def test_every_dead_letter_reason_is_documented():
    table = section("Dead letters, by reason")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {reason.value for reason in DeadReason}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def documented_codes() -> set[str]:
    return {
        code
        for row in re.findall(r"^\| (`.+?`) \|", section("Failures, by code"), re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", row)
    }


def codes_of_the_source() -> set[str]:  # noqa: C901 - five ways in which the source writes a code
    """A code is what follows a failure class; ``*`` stands for what is only known at run time."""
    found: set[str] = set()
    for path in Path("worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call | ast.Tuple):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                for before, after in pairwise(parts):
                    if ast.unparse(before).startswith("FailureClass."):
                        found |= texts_of(after)
            if isinstance(node, ast.Call):
                place = CODED.get(ast.unparse(node.func).rsplit(".", 1)[-1])
                if place is not None and len(node.args) > place:
                    found |= texts_of(node.args[place])
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "code":
                found |= texts_of(node.value)
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "failure_code":
                        found |= texts_of(value)
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= texts_of(node.value)
    return {code for code in found if re.fullmatch(r"[a-z][a-z_*]+", code)}


def texts_of(node: ast.expr) -> set[str]:
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=values):
            return {"".join(part.value if isinstance(part, ast.Constant) else "*" for part in values)}
        case ast.IfExp(body=body, orelse=orelse):
            return texts_of(body) | texts_of(orelse)
        case _:
            return set()
