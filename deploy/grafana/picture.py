# ruff: noqa: E501 - a printed line is a line
"""Draws what the dashboards would show, without Grafana: ``python -m deploy.grafana.picture drawn.json page.html``.

``drawn.json`` comes from ``DASHBOARD_DATA=folder pytest tests/prometheus/test_dashboards.py``: the range queries of
every panel against a live Prometheus. The page is plain SVG; look at it in any browser.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

from deploy.grafana.dashboards import all_of_them

COLUMN, ROW, HEAD, FOOT = 60, 30, 24, 22
"""Pixels of a grid cell, and of a panel's title and legend."""
COLORS = ("#3274d9", "#e0752d", "#56a64b", "#b877d9", "#e02f44", "#1f9ea3", "#c4a000", "#7f7f7f")


def page(drawn: dict[str, Any]) -> str:
    """The whole page."""
    parts = ["<!doctype html><meta charset=utf-8><title>dashboards</title><style>body{font:12px sans-serif}</style>"]
    for made in all_of_them().values():
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in made["panels"])
        parts.append(f"<h2>{escape(made['title'])}</h2><svg width={24 * COLUMN} height={rows * ROW}>")
        parts += [_panel(made["title"], panel, drawn) for panel in made["panels"]]
        parts.append("</svg>")
    return "\n".join(parts)


def _panel(title: str, panel: dict[str, Any], drawn: dict[str, Any]) -> str:
    place = panel["gridPos"]
    x, y, width, height = place["x"] * COLUMN, place["y"] * ROW, place["w"] * COLUMN - 6, place["h"] * ROW - 6
    inner = _inside(title, panel, drawn, width, height)
    return (
        f'<g transform="translate({x},{y})"><rect width="{width}" height="{height}" fill="#fafafa" stroke="#ccc"/>'
        f'<text x="6" y="16" font-weight="bold">{escape(panel["title"])}</text>{inner}</g>'
    )


def _inside(title: str, panel: dict[str, Any], drawn: dict[str, Any], width: int, height: int) -> str:
    series = []
    for target in panel["targets"]:
        for found in drawn.get(f"{title}/{panel['title']}/{target['refId']}", []):
            legend = target["legendFormat"]
            for label, value in found["metric"].items():
                legend = legend.replace("{{" + label + "}}", value)
            points = [(at, float(value)) for at, value in found["values"] if math.isfinite(float(value))]
            if points:
                series.append((legend, points))
    if panel["type"] == "table":
        return '<text x="6" y="40" fill="#888">(a table from Postgres)</text>'
    if not series:
        return '<text x="6" y="40" fill="#c00">no data</text>'
    if panel["type"] == "stat":
        return f'<text x="{width / 2}" y="{height / 2 + 20}" font-size="26" text-anchor="middle">{series[0][1][-1][1]:.3g}</text>'
    if panel["type"] == "bargauge":
        return _bars(series, width)
    return _lines(series, width, height)


def _bars(series: list[tuple[str, list[tuple[float, float]]]], width: int) -> str:
    most = max(points[-1][1] for _, points in series) or 1
    parts = []
    for index, (legend, points) in enumerate(series):
        y, long = HEAD + 8 + index * 18, (width - 170) * points[-1][1] / most
        parts.append(f'<text x="6" y="{y + 10}">{escape(legend)}</text>')
        parts.append(f'<rect x="130" y="{y}" width="{long:.0f}" height="12" fill="{COLORS[0]}"/>')
        parts.append(f'<text x="{135 + long:.0f}" y="{y + 10}">{points[-1][1]:.3g}</text>')
    return "".join(parts)


def _lines(series: list[tuple[str, list[tuple[float, float]]]], width: int, height: int) -> str:
    times = [at for _, points in series for at, _ in points]
    values = [value for _, points in series for _, value in points] + [0.0]
    begin, end, low, high = min(times), max(times), min(values), max(values)
    span, room = max(end - begin, 1), (high - low) or 1
    parts = [
        f'<text x="4" y="{HEAD + 10}" fill="#888">{high:.3g}</text><text x="4" y="{height - FOOT}" fill="#888">{low:.3g}</text>'
    ]
    legend_x = 6
    for index, (legend, points) in enumerate(series):
        color = COLORS[index % len(COLORS)]
        path = " ".join(
            f"{40 + (width - 50) * (at - begin) / span:.1f},{height - FOOT - (height - FOOT - HEAD) * (value - low) / room:.1f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if legend_x < width - 40:
            parts.append(f'<text x="{legend_x}" y="{height - 6}" fill="{color}">{escape(legend)}</text>')
        legend_x += 7 * len(legend) + 12
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8")
