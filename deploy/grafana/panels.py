"""The few kinds of Grafana panel that the dashboards use, as functions that give Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
POSTGRES = {"type": "grafana-postgresql-datasource", "uid": "postgres"}
WIDTH = 24
"""Grafana's grid has 24 columns."""


@dataclass(frozen=True)
class Query:
    """One PromQL expression; ``legend`` as Grafana writes it, ``{{phase}}``."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel before it has a place."""

    kind: str
    title: str
    told: str
    """What it answers, shown behind the panel's i."""
    queries: tuple[Query, ...] = ()
    sql: str = ""
    unit: str = "short"
    width: int = 8
    height: int = 8
    thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    stack: bool = False
    most: float | None = None


def stat(
    title: str, told: str, expr: str, unit: str = "short", thresholds: tuple[tuple[float, str], ...] = ()
) -> Panel:
    """One number, coloured by thresholds."""
    return Panel(
        "stat", title, told, (Query(expr),), unit=unit, width=4, height=4, thresholds=((None, "green"), *thresholds)
    )


def lines(  # noqa: PLR0913 - what a line panel can vary in
    title: str,
    told: str,
    *queries: tuple[str, str],
    unit: str = "short",
    stack: bool = False,
    width: int = 8,
    most: float | None = None,
) -> Panel:
    """Lines over time: pairs of expression and legend."""
    return Panel(
        "timeseries",
        title,
        told,
        tuple(Query(*query) for query in queries),
        unit=unit,
        stack=stack,
        width=width,
        most=most,
    )


def bars(title: str, told: str, expr: str, legend: str, unit: str = "short") -> Panel:
    """One horizontal bar for each series, its newest value."""
    return Panel("bargauge", title, told, (Query(expr, legend),), unit=unit)


def rows_of(title: str, told: str, sql: str, width: int = WIDTH, height: int = 8) -> Panel:
    """A table from Postgres. ``$run`` is the dashboard's text box, quoted by Grafana."""
    return Panel("table", title, told, sql=sql, width=width, height=height)


def dashboard(
    uid: str, title: str, told: str, panels: list[Panel], variables: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    """A dashboard with its panels placed row by row, in order."""
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, row_height = 0, y + row_height, 0
        placed.append(_panel(number, panel, x, y))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return {
        "uid": uid,
        "title": title,
        "description": told,
        "tags": ["speech-training"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(variables)},
        "annotations": {"list": [_alert_marks()]},
        "panels": placed,
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    steps = [{"value": value, "color": color} for value, color in panel.thresholds]
    custom = (
        {"fillOpacity": 15, "stacking": {"mode": "normal" if panel.stack else "none"}}
        if panel.kind == "timeseries"
        else {}
    )
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "custom": custom,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.told,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "datasource": POSTGRES if panel.sql else PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": _targets(panel),
    }


def _targets(panel: Panel) -> list[dict[str, Any]]:
    if panel.sql:
        return [{"refId": "A", "datasource": POSTGRES, "format": "table", "rawQuery": True, "rawSql": panel.sql}]
    return [
        {
            "refId": chr(ord("A") + index),
            "datasource": PROMETHEUS,
            "expr": query.expr,
            "legendFormat": query.legend,
            "instant": panel.kind in {"stat", "bargauge"},
            "range": panel.kind not in {"stat", "bargauge"},
        }
        for index, query in enumerate(panel.queries)
    ]


def _alert_marks() -> dict[str, Any]:
    return {
        "name": "alerts",
        "datasource": PROMETHEUS,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Training.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "step": "60s",
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "table": {"showHeader": True},
}
