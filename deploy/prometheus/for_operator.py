"""Writes ``deploy/kubernetes/monitoring/rules.yaml``, the alert rules as the Prometheus operator wants them.

``python -m deploy.prometheus.for_operator``; a test compares.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent / "kubernetes" / "monitoring" / "rules.yaml"
_HEAD = """\
# Made by `python -m deploy.prometheus.for_operator` from deploy/prometheus/rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: training}
spec:
"""


def render() -> str:
    """The whole file: the rules, two spaces further in."""
    rules = (HERE / "rules.yaml").read_text(encoding="utf-8")
    body = rules[rules.index("groups:") :]
    return _HEAD + "".join(f"  {line}\n" if line else "\n" for line in body.splitlines())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
