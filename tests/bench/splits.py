"""Splits of random collections, judged by an oracle that imports nothing of ours.

A collection is what a customer might bring: long recordings with subtitles, clips, spoken word lists, or some of each;
then he brings more of it. RESULT counts what must not be: collections that could have a test and have none, sound or
text on two sides, rows that moved when data came.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

from schemas.split_rule import SplitRow, assign
from schemas.splits import split_text_key

WORDS = [f"{first}{second}" for first in ("ba", "ke", "mi", "to", "ru", "sha", "len", "vor") for second in
         ("da", "fen", "go", "lim", "nus", "pa", "rek", "si", "tol", "xa", "zu", "bri")]  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("long", "clips", "script", "digits", "mixed")
TESTABLE = {"seconds": 120.0, "utterances": 40, "words": 300}
LEAST = {"utterances": 20, "words": 150}
GAP_S = 2.0


@dataclass(frozen=True)
class Spoken:
    """One row as the customer brings it."""

    recording: str
    start_s: float
    seconds: float
    text: str
    speaker: str | None


# -- collections ---------------------------------------------------------------------------------------------------


def sentence(chance: random.Random, at_least: int = 4) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(at_least, 14)))


def long_recordings(chance: random.Random, count: int, name: str) -> list[Spoken]:
    """Recordings with cues, some of which touch; now and then everybody says the same sentence."""
    jingle = sentence(chance)
    rows = []
    for number in range(count):
        at, end = 0.0, chance.choice((60, 200, 600, 840, 1800)) * chance.uniform(0.5, 1.5)
        while at < end:
            seconds = chance.uniform(1.0, 9.0)
            text = jingle if chance.random() < 0.01 else "mhm" if chance.random() < 0.05 else sentence(chance)
            rows.append(Spoken(f"{name}-{number}", round(at, 3), round(seconds, 3), text, None))
            at += seconds + (0.0 if chance.random() < 0.7 else chance.uniform(0.1, 20))
    return rows


def clips(chance: random.Random, count: int, name: str) -> list[Spoken]:
    voices = [f"{name}{number}" for number in range(chance.randint(1, 12))]
    return [
        Spoken(f"{name}-{number}", 0.0, round(chance.uniform(1.5, 12), 3), sentence(chance), chance.choice(voices))
        for number in range(count)
    ]


def script(chance: random.Random, count: int, name: str) -> list[Spoken]:
    """The same sentences read by several people, as clips."""
    sentences = [sentence(chance) for _ in range(max(1, count // chance.randint(2, 4)))]
    return [
        Spoken(f"{name}-{number}", 0.0, round(chance.uniform(2, 9), 3), sentences[number % len(sentences)],
               f"{name}{number // len(sentences)}")
        for number in range(count)
    ]  # fmt: skip


def digits(chance: random.Random, count: int, name: str) -> list[Spoken]:
    voices = chance.randint(1, 8)
    return [
        Spoken(f"{name}-{number}", 0.0, round(chance.uniform(0.5, 2), 3),
               " ".join(chance.choice(DIGITS) for _ in range(chance.choice((1, 1, 4)))), f"{name}{number % voices}")
        for number in range(count)
    ]  # fmt: skip


def collection(chance: random.Random, kind: str, name: str) -> list[Spoken]:
    match kind:
        case "long":
            return long_recordings(
                chance, chance.randint(1, 40) if chance.random() < 0.5 else chance.randint(1, 5), name
            )
        case "clips":
            return clips(chance, chance.randint(5, 400), name)
        case "script":
            return script(chance, chance.randint(20, 300), name)
        case "digits":
            return digits(chance, chance.randint(40, 600), name)
    return [row for one in chance.sample(KINDS[:4], 2) for row in collection(chance, one, f"{name}{one}")]


# -- ours ----------------------------------------------------------------------------------------------------------


def split(rows: list[Spoken], earlier: dict[tuple[str, float], str]) -> list[str | None]:
    """What the product says of each row; None: left out."""
    told = [
        SplitRow(
            recording=hashlib.sha256(row.recording.encode()).digest(),
            start_s=row.start_s,
            seconds=row.seconds,
            words=len(row.text.split()),
            text=split_text_key(row.text).encode(),
            speaker=row.speaker,
            earlier=earlier.get((row.recording, row.start_s)),  # type: ignore[arg-type] # what it said before
        )
        for row in rows
    ]
    return [str(answer) if answer in {"train", "dev", "test"} else None for answer in assign(told)]


# -- the oracle ----------------------------------------------------------------------------------------------------


def shared_sound(rows: list[Spoken], splits: list[str | None]) -> int:
    """Rows of one recording in two splits that overlap, or of which one is tested and the other begins too near."""
    found = 0
    by_recording: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for row, side in zip(rows, splits, strict=True):
        if side is not None:
            by_recording[row.recording].append((row.start_s, row.start_s + row.seconds, side))
    for members in by_recording.values():
        members.sort()
        for at, (_, end, side) in enumerate(members):
            for start, _, other in members[at + 1 : at + 12]:
                gap = GAP_S if "test" in (side, other) else 0.0
                found += side != other and start < end + gap - 1e-6
    return found


def shared_text(rows: list[Spoken], splits: list[str | None]) -> int:
    """Texts on two sides, other than those that are short or said five times."""
    times = Counter(row.text for row in rows)
    sides: dict[str, set[str]] = defaultdict(set)
    for row, side in zip(rows, splits, strict=True):
        if side is not None and times[row.text] < 5 and len(row.text.split()) > 3:
            sides[row.text].add(side)
    return sum(len(found) > 1 for found in sides.values())


def judged(rows: list[Spoken], splits: list[str | None]) -> dict[str, float]:
    test = [row for row, side in zip(rows, splits, strict=True) if side == "test"]
    trained = {row.text for row, side in zip(rows, splits, strict=True) if side == "train"}
    could = (
        sum(row.seconds for row in rows) >= TESTABLE["seconds"]
        and len(rows) >= TESTABLE["utterances"]
        and sum(len(row.text.split()) for row in rows) >= TESTABLE["words"]
    )
    has = len(test) >= LEAST["utterances"] and sum(len(row.text.split()) for row in test) >= LEAST["words"]
    all_s = sum(row.seconds for row in rows)
    return {
        "without_test": could and not has,
        "without_train": could and not trained,
        "shared_sound": shared_sound(rows, splits),
        "shared_text": shared_text(rows, splits),
        "repeated": sum(row.text in trained for row in test),
        "tested": len(test),
        "test_share": sum(row.seconds for row in test) / all_s,
        "left_out_share": sum(row.seconds for row, side in zip(rows, splits, strict=True) if side is None) / all_s,
    }


# -- the bench -----------------------------------------------------------------------------------------------------


def look(seed: int) -> dict[str, Any]:
    """One collection, and the same with more."""
    chance = random.Random(f"splits {seed}")
    kind = KINDS[seed % len(KINDS)]
    rows = collection(chance, kind, "a")
    first = split(rows, {})
    answer: dict[str, Any] = {"kind": kind, **judged(rows, first)}
    shuffled = list(enumerate(rows))
    chance.shuffle(shuffled)
    again = split([row for _, row in shuffled], {})
    answer["depends_on_order"] = any(first[at] != side for (at, _), side in zip(shuffled, again, strict=True))
    earlier = {(row.recording, row.start_s): side for row, side in zip(rows, first, strict=True) if side is not None}
    more = collection(chance, chance.choice(KINDS), "b")
    if kind == "long" and chance.random() < 0.5:  # a captioner went on in a recording that was there
        more += [replace(row, start_s=row.start_s + 10_000) for row in rows[: len(rows) // 4]]
    later = split([*rows, *more], earlier)
    changed = [(was, now) for was, now in zip(first, later, strict=False) if was is not None and was != now]
    answer["moved"] = sum(now is not None for _, now in changed)
    answer["left_out_later"] = sum(now is None for _, now in changed)
    second = judged([*rows, *more], later)
    for name in ("without_test", "shared_sound", "shared_text"):
        answer[name] += second[name]
    unique = max(Counter(row.text for row in rows).values()) == 1
    answer["repeatable_where_none_repeats"] = answer["repeated"] if unique else 0
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collections", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first collection")
    options = parser.parse_args()
    began = time.monotonic()
    totals: Counter[str] = Counter()
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(options.collections):
        one = look(options.seed + number)
        by_kind[one.pop("kind")].append(one)
        totals.update(one)
        bad = {name: one[name] for name in ("without_test", "shared_sound", "shared_text", "moved") if one[name]}
        if bad:
            print(f"collection {options.seed + number}: {bad}", flush=True)
    for kind, ones in by_kind.items():
        shares = sorted(one["test_share"] for one in ones)
        out = sum(one["left_out_share"] for one in ones) / len(ones)
        print(f"{kind:7} {len(ones)} collections: test median {shares[len(shares) // 2]:.1%} of the seconds,"
              f" at most {shares[-1]:.1%}; left out {out:.1%} on average")  # fmt: skip
    result = {
        "collections": options.collections,
        **{name: int(totals[name]) for name in ("without_test", "shared_sound", "shared_text")},
        "repeatable_share": round(totals["repeatable_where_none_repeats"] / max(1, totals["tested"]), 5),
        **{name: int(totals[name]) for name in ("moved", "left_out_later", "depends_on_order", "without_train")},
        "seconds": round(time.monotonic() - began, 1),
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
