"""What the demo shows: the run as it goes, and what came of it."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from random import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from schemas.status import TERMINAL, Phase, TrainingStatus
from worker.store.database import Database
from worker.store.runs import Limits, RunStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

console = Console(highlight=False)
_SHOWN_METRICS = (
    "training_transitions_total",
    "training_runs_waiting",
    "training_run_seconds_sum",
    "training_gates_total",
)


def begin() -> None:
    """What one is about to see."""
    console.rule("[bold]A custom speech model, from message to model")
    console.print(
        "A cardiology clinic wants its drugs and devices understood. It has 320 short recordings (22 minutes) with\n"
        "transcripts. The speech is [bold]synthetic[/]: made by text-to-speech voices, so part of the gain is getting\n"
        "used to those voices. Look at the rare terms, and at voices that were never trained on."
    )


def say(message: str) -> None:
    """One line of the story."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {message}")


async def watch(database_url: str, run_id: str, alive: Callable[[], bool]) -> dict[str, Any]:
    """Show phases, percent, loss and transitions as they happen; the run when it is over.

    Raises:
        SystemExit: the worker ended before the run did.
    """
    database = Database(database_url, size=1)
    runs = RunStore(database, Limits(), random)
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(40),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=console)
    bars = {phase.value: progress.add_task(phase.value, total=100, start=False, note="") for phase in Phase}
    told = 0
    current: str | None = None
    try:
        with Live(progress, console=console, refresh_per_second=4, transient=not console.is_terminal):
            while True:
                run = await runs.by_id(UUID(run_id))
                for row in (await runs.transitions(UUID(run_id)))[told:] if run else ():
                    told += 1
                    name = TrainingStatus(row["to_status"]).name
                    after_s = (row["at"] - run["requested_at"]).total_seconds()
                    told_of = f"[bold]training_status {row['to_status']}[/] {name}, attempt {row['attempt']}"
                    say(f"{told_of}, {after_s:.2f} s after the request")
                if run is not None:
                    current = _advance(progress, bars, dict(run), current)
                    if TrainingStatus(run["status"]) in TERMINAL:
                        return dict(run)
                if not alive():
                    raise SystemExit("demo: the worker ended before the run did")
                await asyncio.sleep(0.25)
    finally:
        await database.close()


def _advance(progress: Progress, bars: dict[str, Any], run: dict[str, Any], current: str | None) -> str | None:
    phase = run["phase"]
    if phase is None:
        return current
    for name, bar in bars.items():
        if name == phase:
            break
        progress.update(bar, completed=100)
        progress.stop_task(bar)
    if phase != current:
        progress.start_task(bars[phase])
        say(f"phase {phase}")
    live = run["live"] or {}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in live.get("figures", {}).items())
    progress.update(bars[phase], completed=run["percent"], note=shown)
    return str(phase)


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """Error rates of base and custom model; what the RESULT line says of them."""
    found = run["figures"]
    table = Table(
        title="Word error rate on speech never trained on (30 s windows, greedy, same normalizer)", title_justify="left"
    )
    for column in ("test speech", "base model", "custom model"):
        table.add_column(column)
    for name, group in (
        ("voices it was trained on", "known_voices"),
        ("voices never heard", "unseen_voices"),
        ("all", "test"),
    ):
        rates, low_high = found[group], found[group]["intervals"]
        table.add_row(name, *(_rate(rates[model]["wer"], low_high[f"wer_{model}"]) for model in ("base", "custom")))
    rare = found["rare_terms"]
    table.add_row("rare terms heard", *(f"{rare[f'{model}_heard']} of {rare['said']}" for model in ("base", "custom")))
    console.print(table)
    console.print(f"Gate: [bold]{run['gate']}[/]. {found['gate_sentence']}")
    return {
        "wer_base": found["wer_base"],
        "wer_custom": found["wer_custom"],
        "train_audio_s": round(float(found["training"]["train_audio_s"]), 1),
    }


def _rate(wer: float, interval: list[float]) -> str:
    return f"{wer:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def before_and_after(run: dict[str, Any]) -> None:
    """The sentences that gained most."""
    console.print("\nBefore and after, the sentences that gained most:")
    for row in run["figures"]["examples"]:
        console.print(
            f"  said    [bold]{row['text']}[/]\n  base    [red]{row['base']}[/]\n  custom  [green]{row['custom']}[/]\n"
        )


def glance_at_metrics(url: str) -> None:
    """A few of the worker's own figures."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
        lines = answer.read().decode().splitlines()
    console.print("A glance at /metrics:")
    for line in lines:
        if line.startswith(_SHOWN_METRICS) and not line.endswith(" 0.0"):
            console.print(f"  {line}", markup=False)


def where_things_are(storage: Path, run: dict[str, Any], worker_log: Path) -> None:
    """Where to look further."""
    attempt = storage / "runs" / str(run["id"]) / str(run["attempt"])
    console.print("\nWhere things are:")
    for name, path in (
        ("model", attempt / "export" / "model"),
        ("for faster-whisper", attempt / "export" / "ctranslate2"),
        ("report", attempt / "export" / "report.html"),
        ("log of the run", attempt / "log.txt"),
        ("log of the worker", worker_log),
    ):
        if path.exists():
            console.print(f"  {name:18} {path}", soft_wrap=True)
