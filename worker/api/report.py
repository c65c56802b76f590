"""The report of a run: one page that a person would rather look at than JSON. No script, nothing loaded."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from schemas.status import Gate, TrainingStatus
from worker.api import present
from worker.store.database import Record

_VERDICTS: Final = {
    Gate.PUBLISHED: "The custom model makes fewer errors than the base model. It is in use.",
    Gate.NO_IMPROVEMENT: "The custom model is not provably better than the base model, so the model in use stays.",
    Gate.FORGETS: "The custom model understands ordinary speech worse than before, so the model in use stays.",
    Gate.TOO_LITTLE_TEST_DATA: "There is too little test data to say whether the custom model is better.",
}
_STATES: Final = {
    TrainingStatus.NOT_RUNNING: "Cancelled",
    TrainingStatus.READY_TO_RUN: "Waiting",
    TrainingStatus.RUNNING: "Running",
    TrainingStatus.SUCCESS: "Finished",
    TrainingStatus.FAILED: "Failed",
}
_STYLE: Final = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p.verdict{font-size:1.15rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{fill:#3b7dd8}.base{fill:#999}svg{width:100%;height:auto}
text{font-size:13px;fill:currentColor}small,.dim{opacity:.7}
"""
_MOST_ROWS: Final = 200
_MOST_EXAMPLES: Final = 20
_SHOWN_ELSEWHERE: Final = ("reasons", "counts", "gate_sentence")
_WIDTH: Final = 640
_HEIGHT: Final = 180


def style_digest() -> str:
    """The style sheet's digest, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def page(row: Record, transitions: Sequence[Record]) -> str:
    """The whole page as HTML; every text in it is escaped."""
    status = TrainingStatus(row["status"])
    parts = [
        f"<h1>{escape(row['model_name'])}</h1>",
        f"<p class=dim>{escape(row['model_key'])}, from {escape(row['base_language_key'])}. Run {row['id']}</p>",
        f"<p class=verdict><b>{_STATES[status]}.</b> {escape(_verdict(row, status))}</p>",
        _rates(present.error_rates(row["figures"])),
        _curve(present.curve(row["live"])),
        _examples((row["figures"] or {}).get("examples")),
        _reasons(row["data_report"]),
        _table("Data", row["data_report"]),
        _table("Figures", row["figures"]),
        _moves(transitions),
    ]
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(row['model_name'])}: training report</title><style>{_STYLE}</style>{''.join(parts)}</html>"
    )


def _verdict(row: Record, status: TrainingStatus) -> str:
    if status is TrainingStatus.SUCCESS and "gate_sentence" in row["figures"]:
        return str(row["figures"]["gate_sentence"])
    if status is TrainingStatus.SUCCESS:
        return _VERDICTS[Gate(row["gate"])]
    if row["failure_reason"] is not None:
        return str(row["failure_reason"])
    return "The figures come when the run has finished."


def _rates(rates: Mapping[str, float | None]) -> str:
    known = [(side, rate) for side in ("base", "custom") if (rate := rates[side]) is not None]
    if not known:
        return ""
    longest = max(rate for _, rate in known) or 1.0
    bars = []
    for at, (side, rate) in enumerate(known):
        width = 420 * rate / longest
        bars.append(
            f"<text x=0 y={at * 34 + 21}>{side} model</text><rect class={'base' if side == 'base' else 'bar'} x=110 "
            f'y={at * 34 + 4} width="{width:.1f}" height=24 rx=3 />'
            f'<text x="{width + 118:.1f}" y={at * 34 + 21}>{rate:.1%}</text>'
        )
    drawn = "".join(bars)
    return (
        "<h2>Words wrong, on recordings kept for the test</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {len(known) * 34}" role=img aria-label="word error rates">{drawn}</svg>'
    )


def _curve(points: Sequence[Mapping[str, Any]]) -> str:
    drawn = []
    for name in sorted({point["name"] for point in points}):
        line = [(point["steps_done"], point["value"]) for point in points if point["name"] == name]
        if len(line) > 1:
            drawn.append(f"<h2>{escape(name)}</h2>" + _line(line))
    return "".join(drawn)


def _line(points: Sequence[tuple[int, float]]) -> str:
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0
    places = " ".join(
        f"{(step - first) / (last - first) * (_WIDTH - 8) + 4:.1f},{(high - value) / span * (_HEIGHT - 30) + 8:.1f}"
        for step, value in points
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img aria-label="from {points[0][1]:.3g} to {points[-1][1]:.3g}">'
        f'<polyline points="{places}" fill=none stroke="#3b7dd8" stroke-width=2 />'
        f"<text x=4 y={_HEIGHT - 4}>step {first}: {points[0][1]:.3g}</text>"
        f"<text x={_WIDTH - 4} y={_HEIGHT - 4} text-anchor=end>step {last}: {points[-1][1]:.3g}</text></svg>"
    )


def _examples(examples: object) -> str:
    """What was said, and what both models heard: sentences where the custom model helps most."""
    rows = [one for one in examples if isinstance(one, dict)] if isinstance(examples, list) else []
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{escape(str(one.get('text', '')))}<td>{escape(str(one.get('base', '')))}"
        f"<td>{escape(str(one.get('custom', '')))}"
        for one in rows[:_MOST_EXAMPLES]
    )
    return f"<h2>Heard</h2><table><tr><th>Said<th>Base model<th>Custom model{cells}</table>"


def _reasons(report: Mapping[str, Any] | None) -> str:
    """Why files or segments were not used, and what their owner can do."""
    counts, known = (report or {}).get("counts", {}), (report or {}).get("reasons", {})
    if not isinstance(counts, dict) or not counts:
        return ""
    cells = "".join(
        f"<tr><td class=n>{count}<td>{escape(str(known.get(code, {}).get('sentence', code)))}"
        f"<td>{escape(str(known.get(code, {}).get('remedy', '')))}"
        for code, count in counts.items()
    )
    return f"<h2>Not used</h2><table><tr><th>Segments<th>Why<th>What to do{cells}</table>"


def _table(title: str, document: Mapping[str, Any] | None) -> str:
    rows = [(name, value) for name, value in _flat(document or {}, "")][:_MOST_ROWS]
    if not rows:
        return ""
    cells = "".join(f"<tr><th>{escape(name)}<td class=n>{escape(_shown(value))}" for name, value in rows)
    return f"<h2>{title}</h2><table>{cells}</table>"


def _flat(document: Mapping[str, Any], before: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in document.items():
        path = f"{before}, {name}" if before else str(name)
        if path in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, dict):
            found += _flat(value, path)
        elif not isinstance(value, list):
            found.append((path.replace("_", " "), value))
    return found


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _moves(transitions: Sequence[Record]) -> str:
    cells = "".join(
        f"<tr><td>{escape(move['at'].strftime('%Y-%m-%d %H:%M:%S %Z'))}<td>{_STATES[TrainingStatus(move['to_status'])]}"
        f"<td>attempt {move['attempt']}<td>{escape(present.shown_code(move['reason_code']) or '')}"
        for move in transitions
    )
    return f"<h2>What happened</h2><table>{cells}</table>"
