"""The top of the page: is the model better, how sure is that, and on whose speech."""

from typing import Any, Final

from worker.trainer.report import pictures
from worker.trainer.report.markup import Markup, counted, duration, fill, joined, percent, points

_HEADLINES: Final = {
    "published": ("good", "The custom model is better, and in use"),
    "no_improvement": ("wait", "Not measurably better: the present model stays in use"),
    "forgets": ("wait", "Better on your speech, worse on ordinary speech: the present model stays in use"),
    "too_little_test_data": ("wait", "Too little test speech to tell whether the model is better"),
}
_GROUPS: Final = (
    ("known_voices", "Voices it was trained on", "other sentences by the same speakers"),
    ("unseen_voices", "Voices it never heard", "speakers who are only in the test recordings"),
    ("test", "Your test speech", "recordings kept apart from training"),
    ("general", "Ordinary speech", "not yours: does it still understand everybody else?"),
)


def verdict(report: dict[str, Any]) -> Markup:
    """The gate's answer and the few figures that matter."""
    tone, headline = _HEADLINES.get(report["gate"] or "", ("wait", "The model is trained"))
    evaluation = report["evaluation"]
    return fill(
        '<section class="verdict {}" aria-labelledby="answer"><h2 id="answer">{}</h2><p>{}</p>'
        "{}</section><dl class=tiles>{}</dl>",
        tone,
        headline,
        report["gate_sentence"],
        _of_a_hundred(evaluation.get("test")),
        joined(_tiles(report)),
    )


def _of_a_hundred(test: dict[str, Any] | None) -> Markup:
    if not test or test["base"]["words"] == 0:
        return fill("<p>No test speech was measured, so there is nothing to compare.</p>")
    before, after = (100 * test[model]["wer"] for model in ("base", "custom"))
    return fill(
        "<p>Of every 100 words said, the base model gets <b>{}</b> wrong and the custom model <b>{}</b>.</p>",
        _whole(before),
        _whole(after),
    )


def _whole(count: float) -> str:
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"  # noqa: PLR2004 - two digits


def _tiles(report: dict[str, Any]) -> list[Markup]:
    evaluation, training = report["evaluation"], report["training"]
    found = []
    for key, name in (("test", "Words wrong"), ("unseen_voices", "New voices"), ("general", "Ordinary speech")):
        if group := evaluation.get(key):
            low, high = group["intervals"]["wer_change"]
            found.append(
                _tile(
                    name,
                    percent(group["base"]["wer"]),
                    percent(group["custom"]["wer"]),
                    f"{points(group['custom']['wer'] - group['base']['wer'])} points"
                    f" (95%: {points(low)} to {points(high)})",
                )
            )
    rare = evaluation.get("rare_terms") or {}
    if rare.get("said"):
        found.append(_tile("Rare terms heard", rare["base_heard"], rare["custom_heard"], f"of {rare['said']} said"))
    if "train_audio_s" in training:
        told = counted(training.get("train_utterances", 0), "recording")
        took = f"trained in {duration(training.get('seconds', 0.0))}"
        found.append(_tile("Trained on", None, duration(training["train_audio_s"]), f"{told}, {took}"))
    return found


def _tile(name: str, before: object, after: object, note: str) -> Markup:
    arrow = fill('<span class=before>{}</span> <span class=arrow aria-label="then">→</span> ', before)
    return fill(
        "<div><dt>{}</dt><dd><span class=big>{}<b>{}</b></span> <span class=dim>{}</span></dd></div>",
        name,
        arrow if before is not None else "",
        after,
        note,
    )


def groups(evaluation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What was measured: name, explanation, figures. The whole test is told where its voices are not told apart."""
    apart = bool(evaluation.get("unseen_voices"))
    return [
        (name, told, evaluation[key])
        for key, name, told in _GROUPS
        if evaluation.get(key) and not (key == "test" and apart)
    ]


def accuracy(report: dict[str, Any]) -> Markup:
    """Base against custom, as a picture and as a table."""
    evaluation = report["evaluation"]
    measured = groups(evaluation)
    if not measured:
        return fill("<p>Nothing was measured: no usable recording is in the test split.</p>")
    highest = 1.08 * max(
        [*(high for _, _, group in measured for high in (group["intervals"][f"wer_{m}"][1] for m in _MODELS)), 0.05]
    )
    notes = [_voices_note(report)]
    if (kept := evaluation.get("general_set")) and not kept["test"]:
        notes.append(fill("<li>Ordinary speech was not measured: no recording of it was kept apart for that.</li>"))
    if report["by_character"]:
        notes.append(fill("<li>Written without spaces between words: every character counts as a word.</li>"))
    if any(loops := [sum(group[model]["loops_cut"] for _, _, group in measured) for model in _MODELS]):
        notes.append(fill("<li>Endless repetitions cut off: base {}, custom {}.</li>", *loops))
    return fill(
        "<p class=key><span class=base>base model</span> <span class=custom>custom model</span> "
        "<span class=dim>dot: share of words wrong; line: where it lies with 95% certainty</span></p>"
        "<div class=compare>{}{}</div><ul class=notes>{}</ul>"
        "<details><summary>All figures</summary><div class=scroll>{}</div></details>",
        joined(_group(name, told, group, highest) for name, told, group in measured),
        fill('<div class="axisrow">{}</div>', pictures.axis(highest)),
        joined(notes),
        _figures(measured),
    )


_MODELS: Final = ("base", "custom")


def _voices_note(report: dict[str, Any]) -> Markup:
    evaluation = report["evaluation"]
    if not report["speakers"]["named"]:
        return fill("<li>No speakers are named in the data, so known and new voices cannot be told apart.</li>")
    if not evaluation.get("unseen_voices"):
        return fill("<li>Every test voice was trained on too. Expect somewhat more errors with new voices.</li>")
    return fill("<li>What to expect of speakers who join later: the voices it never heard.</li>")


def _group(name: str, told: str, group: dict[str, Any], highest: float) -> Markup:
    low, high = group["intervals"]["wer_change"]
    lines = [
        fill(
            '<div class="line"><span class="model {0}">{0}</span>{1}<span class=n><b>{2}</b> <span class=dim>{3}</span>'
            "</span></div>",
            model,
            pictures.interval(group[model]["wer"], group["intervals"][f"wer_{model}"], model, highest),
            percent(group[model]["wer"]),
            " to ".join(percent(value) for value in group["intervals"][f"wer_{model}"]),
        )
        for model in _MODELS
    ]
    return fill(
        "<div class=group><h3>{} <span class=dim>{}</span></h3>{}<p class=dim>Change {} points ({} to {}): {}. "
        "{} words in {}.</p></div>",
        name,
        told,
        joined(lines),
        points(group["custom"]["wer"] - group["base"]["wer"]),
        points(low),
        points(high),
        "better" if high < 0 else "worse" if low > 0 else "no certain difference",
        f"{group['base']['words']:,}",
        counted(group["utterances"], "recording"),
    )


def _figures(measured: list[tuple[str, str, dict[str, Any]]]) -> Markup:
    rows = [
        fill(
            "<tr><th scope=row>{}, {}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            name,
            model,
            percent(group[model]["wer"]),
            percent(group[model]["cer"]),
            group[model]["substitutions"],
            group[model]["deletions"],
            group[model]["insertions"],
            f"{group[model]['words']:,}",
        )
        for name, _, group in measured
        for model in _MODELS
    ]
    head = ("words wrong (WER)", "letters wrong (CER)", "misheard", "left out", "made up", "words said")
    return fill(
        "<table class=figures><thead><tr><th scope=col>set, model</th>{}</tr></thead><tbody>{}</tbody></table>",
        joined(fill("<th scope=col>{}</th>", name) for name in head),
        joined(rows),
    )
