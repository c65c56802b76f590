"""How a step ended that ended well."""

from __future__ import annotations

from worker.launchers.exchange.interface import EndFacts
from worker.launchers.interface import EndReason

FACTS = EndFacts(
    reason=EndReason.EXITED,
    exit_code=0,
    signal=None,
    out_of_memory=False,
    max_rss_bytes=1,
    cpu_s=0,
    paused_s=0,
    garbage_lines=0,
    dropped_events=0,
    detail="",
)
