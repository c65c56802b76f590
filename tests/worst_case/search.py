"""Looks for inputs that cost a parser more than their length: short fragments, pumped up.

    python -m tests.worst_case.search [--minutes 10] [--seed 1] [--parser cue] [--list]

A pump is prefix + fragment x n + suffix. That is the shape of what makes a pattern quadratic, or a sort. Fragments
are made of a parser's own tokens and of what is in every text; Hypothesis steers them towards what costs most.
Prints what it finds and ends in `RESULT {…}`; exits 1 where a parser is too slow.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis import strategies as st

from tests.worst_case.oracle import MOST_PER_KB, Cost, cost
from tests.worst_case.parsers import EVERYWHERE, PARSERS, Parser


@dataclass(frozen=True)
class Pump:
    """A family of inputs of any size."""

    prefix: str
    fragment: str
    suffix: str

    def text(self, size: int) -> str:
        """About so many bytes."""
        each = len(self.fragment.encode("utf-8", "surrogateescape"))
        return self.prefix + self.fragment * max(1, size // each) + self.suffix


@dataclass(frozen=True)
class Worst:
    """What cost a parser most."""

    pump: Pump
    cost: Cost


def pumps(parser: Parser) -> st.SearchStrategy[Pump]:
    """Pumps of a parser's tokens."""
    token = st.sampled_from(parser.tokens or EVERYWHERE) | st.sampled_from(EVERYWHERE)
    return st.builds(
        Pump,
        st.lists(token, max_size=3).map("".join),
        st.lists(token, min_size=1, max_size=3).map("".join),
        st.lists(token, max_size=2).map("".join),
    )


def measured(parser: Parser, pump: Pump) -> Cost:
    """What the parser's inputs of this family cost."""
    return cost(parser.parse, lambda size: parser.whole(pump.text(size)), parser.largest, parser.most_per_kb)


def search(parser: Parser, examples: int, chance: int) -> tuple[list[Worst], Worst | None]:
    """Pumps that cost too much, and what cost most of all others.

    Args:
        parser: where to look.
        examples: how many pumps to try.
        chance: the seed; the same finds the same.
    """
    found: list[Worst] = []
    most: list[Worst] = []

    @seed(chance)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.target],
        suppress_health_check=list(HealthCheck),
    )
    @given(pumps(parser))
    def look(pump: Pump) -> None:
        if found:
            return  # the first is enough: whatever it is, it has to be mended
        worst = Worst(pump, measured(parser, pump))
        if worst.cost.too_much(parser.most_per_kb):
            found.append(worst)
            return
        target(worst.cost.per_kb)
        if not most or worst.cost.per_kb > most[0].cost.per_kb:
            most[:] = [worst]

    look()
    return found, most[0] if most else None


def main() -> int:
    """The long search, parser after parser until the time is over."""
    asked = argparse.ArgumentParser(description="Looks for inputs that cost a parser more than their length.")
    asked.add_argument("--minutes", type=float, default=10)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--parser", action="append", choices=sorted(PARSERS))
    asked.add_argument("--examples", type=int, default=60, help="pumps of a parser in one round")
    asked.add_argument("--list", action="store_true", help="the names of the parsers")
    options = asked.parse_args()
    names = options.parser or list(PARSERS)
    if options.list:
        print("\n".join(names))
        return 0
    end = time.monotonic() + 60 * options.minutes
    worst: dict[str, Worst] = {}
    slow: dict[str, Worst] = {}
    rounds = 0
    while not rounds or (time.monotonic() < end and len(slow) < len(names)):
        for name in names:
            if name in slow or (rounds and time.monotonic() >= end):
                continue
            found, most = search(PARSERS[name], options.examples, options.seed + rounds)
            if found:
                slow[name] = found[0]
                print(
                    f"{name}: {found[0].cost.too_much(PARSERS[name].most_per_kb)}: {found[0].pump} {found[0].cost}",
                    flush=True,
                )
            if most is not None and (name not in worst or most.cost.per_kb > worst[name].cost.per_kb):
                worst[name] = most
        rounds += 1
    for name, one in sorted(worst.items(), key=lambda entry: -entry[1].cost.per_kb):
        print(f"{one.cost.per_kb:7.1f} of at most {MOST_PER_KB:.0f} times the calibration loop  {name}: {one.pump}")
    result = {
        "parsers": len(names),
        "rounds": rounds,
        "pumps": rounds * options.examples * len(names),
        "too_slow": sorted(slow),
        "worst_per_kb": round(max((one.cost.per_kb for one in worst.values()), default=0.0), 1),
    }
    print(f"RESULT {json.dumps(result)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
