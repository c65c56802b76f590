"""The whole page: one file that asks nobody for anything, with a policy that forbids it to."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from worker.trainer.report import answer, material, transcripts
from worker.trainer.report.markup import Markup, fill, joined

_SHELL: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark"><title>{model}: training report</title><style>{style}</style></head>
<body><a class="skip" href="#main">To the report</a>
<header><p class="dim">Training report</p><h1 dir="auto">{model}</h1>
<p class="dim">from the base language <b>{base}</b> · {made_at} · run {run}</p>
<nav aria-label="Parts">{links}</nav></header>
<main id="main" tabindex="-1">{verdict}{parts}</main>
<script>{script}</script></body></html>
"""


def page(report: dict[str, Any], clips: Mapping[int, str]) -> str:
    """A report as HTML.

    Args:
        report: what `facts.gather` found.
        clips: data addresses of recordings by row.
    """
    parts = (
        ("accuracy", "Words wrong", answer.accuracy(report)),
        ("words", "Words that changed", transcripts.words(report)),
        ("terms", "Rare terms", transcripts.terms(report)),
        ("listen", "Sentence by sentence", transcripts.sentences(report, clips)),
        ("data", "Your data", material.data(report)),
        ("speakers", "Hours by speaker", material.speakers(report)),
        ("training", "Training", material.training(report)),
        ("cost", "Time and memory", material.phases(report)),
        ("making", "What it was made with", material.making(report)),
    )
    style, script = _file("report.css"), _file("report.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return fill(
        _SHELL,
        policy=policy,
        model=report["model"],
        style=style,
        script=script,
        base=report["base"] or "unknown",
        made_at=report["made_at"].replace("T", " ").replace("+00:00", " UTC"),
        run=report["run_id"],
        verdict=answer.verdict(report),
        links=joined(fill('<a href="#{}">{}</a> ', name, title) for name, title, _ in parts),
        parts=joined(
            fill('<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}</section>', *part)
            for part in parts
        ),
    )


@cache
def _file(name: str) -> Markup:
    """A file of ours beside this one, as it stands."""
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
