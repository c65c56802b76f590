"""The middle and the end of the page: the data, the training, what it cost, and with what it was made."""

from typing import Any, Final

from worker.trainer.report import pictures
from worker.trainer.report.markup import Markup, counted, duration, fill, joined, memory

_SPLITS: Final = (
    ("train", "training"),
    ("dev", "development: chooses the weights"),
    ("test", "test: measured once"),
)


def data(report: dict[str, Any]) -> Markup:
    """What was used, and what was not and why."""
    found = report["data"]
    files = found.get("files") or {}
    refused = found.get("rejections_total") or 0
    told = [fill("<b>{}</b> of speech in <b>{}</b> used.", duration(found["usable_s"]), _segments(found))]
    if files:
        waiting = files.get("waiting_for_pair", 0)
        told.append(
            fill(
                " Of your files {} were accepted and {} refused{}.",
                f"{files.get('accepted', 0):,}",
                f"{files.get('rejected', 0):,}",
                f"; {waiting:,} wait for their other half" if waiting else "",
            )
        )
    return fill("<p>{}</p>{}", joined(told), _refused(found) if refused else fill("<p>Nothing was refused.</p>"))


def _segments(found: dict[str, Any]) -> str:
    return counted(sum(found["segments"].values()), "recording or segment", "recordings and segments")


def _refused(found: dict[str, Any]) -> Markup:
    reasons = found.get("reasons") or {}
    counts = [
        fill(
            "<tr><td class=n>{}</td><th scope=row>{} <span class=dim>{}</span></th></tr>",
            f"{count:,}",
            reasons.get(code, {}).get("sentence") or code,
            reasons.get(code, {}).get("remedy"),
        )
        for code, count in found["counts"].items()
    ]
    named = [
        fill("<tr><th scope=row class=file>{}</th><td>{}</td></tr>", one["file"], one["reason"] or one["reason_code"])
        for one in found.get("rejections") or []
    ]
    left_out = found["rejections_total"] - len(named)
    return fill(
        "<h3>Not used</h3><table class=refused><thead><tr><th class=n scope=col>how many</th><th scope=col>why, and "
        "what helps</th></tr></thead><tbody>{}</tbody></table>{}",
        joined(counts),
        fill(
            "<details><summary>Which ones</summary><div class=scroll><table><tbody>{}</tbody></table></div>{}"
            "</details>",
            joined(named),
            fill("<p class=dim>{} more are not listed.</p>", f"{left_out:,}") if left_out > 0 else "",
        )
        if named
        else "",
    )


def speakers(report: dict[str, Any]) -> Markup:
    """Hours by split and by speaker."""
    seconds = report["data"]["seconds"]
    whole = sum(seconds.values())
    told = report["speakers"]
    longest = max((sum(one[split] for split, _ in _SPLITS) for one in told["listed"]), default=0.0)
    rows = [
        fill(
            "<tr><th scope=row><span class=name>{}</span>{}{}</th><td class=n><b>{}</b></td>{}</tr>",
            one["speaker"] if one["speaker"] is not None else "without a name",
            fill(" <span class=tag>only in the test</span>") if one["test"] and not one["train"] + one["dev"] else "",
            pictures.stacked([(split, one[split]) for split, _ in _SPLITS], longest),
            duration(sum(one[split] for split, _ in _SPLITS)),
            joined(
                fill("<td class='n split'>{}</td>", duration(one[split]) if one[split] else "\u2013")
                for split, _ in _SPLITS
            ),
        )
        for one in told["listed"]
    ]
    more = (
        fill("<p class=dim>{} more with {} are not listed.</p>", told["left_out"], duration(told["left_out_s"]))
        if told["left_out"]
        else ""
    )
    return fill(
        "<p class=key>{}</p>{}<div class=scroll><table class=speakers><thead><tr><th scope=col>speaker</th>"
        "<th class=n scope=col>all</th><th class='n split' scope=col>train</th><th class='n split' scope=col>dev</th>"
        "<th class='n split' scope=col>test</th></tr></thead><tbody>{}</tbody></table></div>{}",
        joined(
            fill("<span class={}>{}</span> ", split, f"{duration(seconds.get(split, 0.0))} {name}")
            for split, name in _SPLITS
        ),
        pictures.stacked([(split, seconds.get(split, 0.0)) for split, _ in _SPLITS], whole),
        joined(rows),
        more,
    )


def training(report: dict[str, Any]) -> Markup:
    """The curves, and what they say."""
    found = report["training"]
    loss, dev = report["curves"].get("loss", []), report["curves"].get("dev_loss", [])
    if not loss:
        return fill("<p>No curve was kept.</p>")
    said = f"Training loss from {loss[0][1]:.2f} to {loss[-1][1]:.2f} in {loss[-1][0]:.0f} steps"
    said += f"; development loss from {dev[0][1]:.2f} to {dev[-1][1]:.2f}." if dev else "."
    chosen = report["chosen_step"]
    note = (
        fill("The weights of step {} were taken, because the development recordings liked them best.", chosen)
        if chosen is not None
        else fill("There were too few development recordings to choose by; the last weights were taken.")
    )
    if found.get("resumed_from_step"):
        note = fill("{} Training was interrupted and went on from step {}.", note, found["resumed_from_step"])
    return fill(
        "<p class=key><span class=smooth>training loss</span> {}{}</p>{}<p class=dim>steps</p><p>{}</p>",
        fill("<span class=devdot>development loss</span> ") if dev else "",
        fill("<span class=chosenmark>step taken</span>") if chosen is not None else "",
        pictures.curves(loss, dev, chosen, said),
        fill("{} {}", said, note),
    )


def phases(report: dict[str, Any]) -> Markup:
    """Time and memory by phase."""
    listed = report["phases"]
    longest = max((one["seconds"] or 0.0 for one in listed), default=0.0)
    rows = [
        fill(
            "<tr><th scope=row>{}{}</th><td class=n>{}</td><td class=n>{}</td></tr>",
            one["phase"],
            pictures.stacked([("train", one["seconds"] or 0.0)], longest),
            duration(one["seconds"]) if one["seconds"] is not None else "\u2013",
            memory(one["peak_memory_bytes"]) if one["peak_memory_bytes"] else "\u2013",
        )
        for one in listed
    ]
    return fill(
        "<div class=scroll><table class=phases><thead><tr><th scope=col>phase</th><th class=n scope=col>time</th>"
        "<th class=n scope=col>most memory</th></tr></thead><tbody>{}</tbody></table></div>"
        "<p class=dim>Publishing was still going on when this page was made.</p>",
        joined(rows),
    )


def making(report: dict[str, Any]) -> Markup:
    """Settings, versions and digests."""
    identity = {"run": report["run_id"], "attempt": report["attempt"], "base": report["base"]}
    tables = (("Settings", report["settings"]), ("Versions", identity | report["made_with"] | report["digests"]))
    drawn = joined(
        fill(
            "<div><h3>{}</h3><table class=facts><tbody>{}</tbody></table></div>",
            name,
            joined(
                fill("<tr><th scope=row>{}</th><td>{}</td></tr>", str(key).replace("_", " "), _shown(value))
                for key, value in facts.items()
                if value is not None
            ),
        )
        for name, facts in tables
    )
    return fill("<div class=pair>{}</div>", drawn)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
