"""The page's words and sentences: what changed, word by word, with the recordings to listen to."""

from collections.abc import Mapping
from typing import Any, Final

from worker.trainer.report.markup import Markup, counted, duration, fill, joined

_WORDS_AT_ONCE: Final = 12
_DASH: Final = "\u2013"
_SETS: Final = {"test": "your test speech", "general": "ordinary speech"}


def terms(report: dict[str, Any]) -> Markup:
    """Each rare term and how often it was heard."""
    rare = report["evaluation"].get("rare_terms") or {}
    if not rare.get("said"):
        return fill("<p>The test speech has no rare terms: words that the base model has to spell in pieces.</p>")
    rows = [
        fill(
            "<tr><th scope=row dir=auto>{}</th><td class=n>{}</td><td class=n>{}</td><td class='n {}'>{}</td></tr>",
            term["word"],
            term["said"],
            term["base_heard"],
            "bad" if term["custom_heard"] < term["base_heard"] else "good",
            term["custom_heard"],
        )
        for term in report["terms"]
    ]
    left_out = report["terms_total"] - len(rows)
    return fill(
        "<p>Words that the base model has to spell in pieces, such as names of products. The base model heard "
        "<b>{}</b> of {}, the custom model <b>{}</b>.</p><details><summary>{}</summary><div class=scroll><table>"
        "<thead><tr><th scope=col>term</th><th class=n scope=col>said</th><th class=n scope=col>base heard</th>"
        "<th class=n scope=col>custom heard</th></tr></thead><tbody>{}</tbody></table></div>{}</details>",
        rare["base_heard"],
        rare["said"],
        rare["custom_heard"],
        counted(report["terms_total"], "term"),
        joined(rows),
        fill("<p class=dim>{} more are not listed.</p>", left_out) if left_out > 0 else "",
    )


def words(report: dict[str, Any]) -> Markup:
    """The words that improved most, and those that got worse."""
    found = report["words"]
    if not found["different"]:
        return fill("<p>No test speech, so no words to compare.</p>")
    return fill(
        "<div class=pair><div><h3>Improved most <span class=dim>{} in all</span></h3>{}</div>"
        "<div><h3>Got worse <span class=dim>{} in all</span></h3>{}</div></div>",
        found["improved_total"],
        _words(found["improved"], "base", "was written", "No word improved."),
        found["worse_total"],
        _words(found["worse"], "custom", "is now written", "No word got worse."),
    )


def _words(listed: list[dict[str, Any]], model: str, verb: str, none: str) -> Markup:
    if not listed:
        return fill("<p>{}</p>", none)
    more = listed[_WORDS_AT_ONCE:]
    return fill(
        "{}{}",
        _word_table(listed[:_WORDS_AT_ONCE], model, verb),
        fill("<details><summary>{} more</summary>{}</details>", len(more), _word_table(more, model, verb))
        if more
        else "",
    )


def _word_table(listed: list[dict[str, Any]], model: str, verb: str) -> Markup:
    rows = [
        fill(
            "<tr><th scope=row><b dir=auto>{}</b> <span class=dim>{} <bdi>{}</bdi></span></th><td class=n>{} of {}</td>"
            "<td class=n>{} of {}</td></tr>",
            word["word"],
            verb,
            ", ".join(wrote or "(nothing)" for wrote in word[f"{model}_heard_as"]),
            word["base_missed"],
            word["said"],
            word["custom_missed"],
            word["said"],
        )
        for word in listed
    ]
    return fill(
        "<table class=words><thead><tr><th scope=col>word</th><th class=n scope=col>base missed</th>"
        "<th class=n scope=col>custom missed</th></tr></thead><tbody>{}</tbody></table>",
        joined(rows),
    )


def sentences(report: dict[str, Any], clips: Mapping[int, str]) -> Markup:
    """Every sentence of the test, the worst first."""
    listed = report["sentences"]
    if not listed:
        return fill("<p>There is no test speech to show.</p>")
    notes = []
    if (left_out := report["sentences_total"] - len(listed)) > 0:
        notes.append(f"{counted(left_out, 'sentence')} that changed least are left out of this page.")
    own = sum(1 for one in listed if one["set"] == "test")
    if len(clips) < own:
        notes.append(
            f"The recordings of the {len(clips):,} most changed sentences of {own:,} are in this page; the others would"
            " make it too large."
        )
    if own < len(listed):
        notes.append("The recordings of ordinary speech are not in this page.")
    return fill(
        "<p class=key><span class=wrongkey>wrong</span> <span class=dim>{} left out; a column without a word said: "
        "made up. Case, punctuation and the way numbers are written do not count.</span></p>{}{}"
        "<ol id=sentences>{}</ol><p id=none hidden>No sentence fits.</p><button id=more type=button hidden></button>",
        _DASH,
        joined(fill("<p class=dim>{}</p>", note) for note in notes),
        _choices(listed),
        joined(_sentence(one, clips.get(one["row"]) if one["set"] == "test" else None) for one in listed),
    )


def _choices(listed: list[dict[str, Any]]) -> Markup:
    """What the script does; without one there is nothing to choose."""
    sets = sorted({one["set"] for one in listed}, reverse=True)
    unseen = any(one["unseen_voice"] for one in listed if one["set"] == "test")
    of = [(name, _SETS.get(name, name)) for name in sets]
    of += [("unseen", "new voices")] if unseen else []
    return fill(
        "<form id=choices hidden><label>Order<select id=order><option value=worst>worst first</option>"
        "<option value=gain>most improved first</option><option value=loss>most worsened first</option>"
        "<option value=given>as in your data</option></select></label>"
        "<label>Show<select id=kind><option value=all>all</option><option value=better>improved</option>"
        "<option value=worse>got worse</option><option value=wrong>still with errors</option>"
        "<option value=right>without errors</option></select></label>"
        "<label>Of<select id=of><option value=all>everything</option>{}</select></label>"
        "<label class=grow>Containing<input id=search type=search autocomplete=off></label>"
        "<output id=shown aria-live=polite></output></form>",
        joined(fill('<option value="{}">{}</option>', value, name) for value, name in of),
    )


def _sentence(one: dict[str, Any], clip: str | None) -> Markup:
    base, custom = one["base_errors"], one["custom_errors"]
    tone, told = _told(base, custom)
    facts = [one["file"], one["speaker"], "new voice" if one["unseen_voice"] and one["set"] == "test" else None]
    facts += [duration(one["seconds"]), _SETS.get(one["set"], one["set"]) if one["set"] != "test" else None]
    return fill(
        '<li data-set="{}" data-unseen="{}" data-row="{}" data-base="{}" data-custom="{}" data-words="{}">'
        "<div class=head><span class='fate {}'>{}</span>{}<span class='dim facts'>{}</span></div>"
        "<p class=said dir=auto>{}</p><p class=spoken>base: {} / custom: {}</p>"
        "<div class=gloss dir=auto aria-hidden=true><span class=labels><b>said</b><i>base</i><i>custom</i></span>"
        "{}</div></li>",
        one["set"],
        int(bool(one["unseen_voice"])),
        one["row"],
        base,
        custom,
        one["words"],
        tone,
        told,
        fill('<audio controls preload=none src="{}" aria-label="recording {}"></audio>', clip, one["file"])
        if clip
        else "",
        joined(fill("<span><bdi>{}</bdi></span> ", fact) for fact in facts if fact),
        one["text"],
        *(" ".join(column[model] for column in one["columns"] if column[model]) or "nothing" for model in (1, 2)),
        joined(_column(*column) for column in one["columns"]),
    )


def _told(base: int, custom: int) -> tuple[str, str]:
    if base == custom:
        return ("right", "no errors") if custom == 0 else ("same", counted(custom, "error") + ", as before")
    tone = "better" if custom < base else "worse"
    return tone, f"{base} → {counted(custom, 'error')}"


def _column(said: str, base: str, custom: str) -> Markup:
    cells = [
        fill("<i class={}>{}</i>", "ok" if heard == said else "wrong", heard or _DASH) if heard or said else _EMPTY
        for heard in (base, custom)
    ]
    return fill("<span class=col><b>{}</b>{}</span> ", said or "\u00a0", joined(cells))


_EMPTY: Final = fill("<i class=ok>\u00a0</i>")
