"""The report of a run: a page for people, and the same figures as JSON."""

import traceback
from typing import Final

from worker.trainer.dataset import Dataset
from worker.trainer.report.facts import gather
from worker.trainer.report.page import page
from worker.trainer.report.sound import clips
from worker.trainer.step import StepRun, write_atomically, write_json

PAGE: Final = "report.html"
FIGURES: Final = "report.json"


def write_report(run: StepRun, dataset: Dataset) -> list[str]:
    """Leave both in the step's output and return their names; none when they could not be made."""
    try:
        report = gather(run, dataset)
        html = page(report, clips(dataset, report["sentences"]))
        write_json(run.output / FIGURES, report)
        write_atomically(run.output / PAGE, lambda place: place.write_text(html, encoding="utf-8"))
    except Exception:  # noqa: BLE001 - hours of training are not lost for a page; the run's log says what happened
        print("The report could not be made:", flush=True)  # noqa: T201 - the run's log
        traceback.print_exc()
        return []
    return [PAGE, FIGURES]
