"""Sentences word by word: what was said, what the base model heard, what the custom model heard."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jiwer

from worker.trainer.scoring import rare_terms

WORDS_SHOWN: Final = 25
TERMS_SHOWN: Final = 120
SENTENCES_SHOWN: Final = 400
_ALTERNATIVES: Final = 2

Column = tuple[str, str, str]
"""What was said, what the base heard there, what the custom model heard there; nothing said: a word made up."""


def columns(reference: str, base: str, custom: str) -> list[Column]:
    """Lay three normalized texts beside each other, word under word."""
    words = reference.split()
    base_heard, base_extra = _heard(words, base)
    custom_heard, custom_extra = _heard(words, custom)
    laid: list[Column] = []
    for place in range(len(words) + 1):
        if base_extra[place] or custom_extra[place]:
            laid.append(("", base_extra[place], custom_extra[place]))
        if place < len(words):
            laid.append((words[place], base_heard[place], custom_heard[place]))
    return laid


def _heard(words: Sequence[str], hypothesis: str) -> tuple[list[str], list[str]]:
    """What was heard for each word, and what was made up before each and after the last.

    Words made up beside a misheard one belong to it: `semaglutide` was heard as `some a glue tide`.
    """
    heard: list[list[str]] = [[] for _ in words]
    extra: list[list[str]] = [[] for _ in range(len(words) + 1)]
    found = hypothesis.split()
    if not words:
        return [], [" ".join(found)]
    chunks = jiwer.process_words(" ".join(words), hypothesis).alignments[0] if found else []
    for at, chunk in enumerate(chunks):
        said, wrote = chunk.ref_start_idx, found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type in {"equal", "substitute"}:
            for offset, word in enumerate(wrote):
                heard[said + offset].append(word)
        elif chunk.type == "insert":
            if at > 0 and chunks[at - 1].type != "equal":
                heard[said - 1] += wrote
            elif at + 1 < len(chunks) and chunks[at + 1].type != "equal":
                heard[said] += wrote
            else:
                extra[said] += wrote
    return [" ".join(cell) for cell in heard], [" ".join(cell) for cell in extra]


def sentences(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an evaluation, laid out, the worst of the custom model first."""
    found = []
    for row in rows:
        base, custom = (_total(row[f"{model}_words"]) for model in ("base", "custom"))
        found.append(
            {name: row[name] for name in ("set", "row", "file", "speaker", "unseen_voice", "seconds", "text")}
            | {"words": row["custom_words"]["length"], "base_errors": base, "custom_errors": custom}
            | {"columns": columns(row["reference"], row["base"], row["custom"])}
        )
    return sorted(found, key=_worst_first)


def _total(errors: dict[str, int]) -> int:
    return errors["substitutions"] + errors["deletions"] + errors["insertions"]


def _worst_first(sentence: dict[str, Any]) -> tuple[float, ...]:
    rate = sentence["custom_errors"] / max(1, sentence["words"])
    return (-rate, sentence["base_errors"] - sentence["custom_errors"], sentence["set"] != "test", sentence["row"])


def change(sentence: dict[str, Any]) -> int:
    """How much there is to see: words whose fate changed, those that went wrong counting as well."""
    moved = abs(int(sentence["base_errors"]) - int(sentence["custom_errors"]))
    return 2 * moved + int(sentence["custom_errors"])


@dataclass
class _Word:
    said: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    heard_as: dict[str, Counter[str]] = field(default_factory=lambda: {"base": Counter(), "custom": Counter()})


def words(laid_out: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The words of the test speech that improved most, and those that got worse."""
    tallies: dict[str, _Word] = {}
    for sentence in laid_out:
        for said, base, custom in sentence["columns"]:
            if not said or sentence["set"] != "test":
                continue
            tally = tallies.setdefault(said, _Word())
            tally.said += 1
            for model, heard in (("base", base), ("custom", custom)):
                if heard != said:
                    tally.missed[model] += 1
                    tally.heard_as[model][heard] += 1
    told: list[dict[str, Any]] = [
        {
            "word": word,
            "said": tally.said,
            "base_missed": tally.missed["base"],
            "custom_missed": tally.missed["custom"],
            "base_heard_as": _commonest(tally.heard_as["base"]),
            "custom_heard_as": _commonest(tally.heard_as["custom"]),
        }
        for word, tally in tallies.items()
    ]
    better = [word for word in told if word["custom_missed"] < word["base_missed"]]
    worse = [word for word in told if word["custom_missed"] > word["base_missed"]]
    return {
        "different": len(told),
        "improved": sorted(better, key=_by_change)[:WORDS_SHOWN],
        "improved_total": len(better),
        "worse": sorted(worse, key=_by_change)[:WORDS_SHOWN],
        "worse_total": len(worse),
    }


def _commonest(heard: Counter[str]) -> list[str]:
    return [wrote for wrote, _ in sorted(heard.items(), key=lambda one: (-one[1], one[0]))[:_ALTERNATIVES]]


def _by_change(word: dict[str, Any]) -> tuple[Any, ...]:
    return (-abs(word["base_missed"] - word["custom_missed"]), word["custom_missed"], word["word"])


def terms(rows: Iterable[dict[str, Any]], pieces: Callable[[str], int]) -> list[dict[str, Any]]:
    """Each rare term: how often said, and heard by each model; counted as `scoring.recall` counts."""
    test = [row for row in rows if row["set"] == "test"]
    rare = rare_terms([row["reference"] for row in test], pieces)
    tallies = {word: Counter[str]() for word in rare}
    for row in test:
        said = Counter(word for word in row["reference"].split() if word in rare)
        heard = {model: Counter(row[model].split()) for model in ("base", "custom")}
        for word, count in said.items():
            tallies[word]["said"] += count
            for model, found in heard.items():
                tallies[word][model] += min(count, found[word])
    told = [
        {"word": word, "said": tally["said"], "base_heard": tally["base"], "custom_heard": tally["custom"]}
        for word, tally in tallies.items()
    ]
    return sorted(told, key=lambda term: (-(term["custom_heard"] - term["base_heard"]), -term["said"], term["word"]))
