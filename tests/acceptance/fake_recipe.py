"""The whole recipe of a fake trainer: what the pipeline asks of prepare, train, evaluate and export, in milliseconds.

    python -IS fake_recipe.py WORLD …   (see ``World.trainer_python``; further arguments are ignored)

How it behaves stands in ``WORLD/plans/<run id>.json``, else in ``WORLD/plans/default.json``: the parameters of
``tests/fake_trainer.py``, where ``fake`` may also say ``{step: {attempt: behaviour}}``, and ``step_s_of`` makes
single steps slow: ``{step: seconds}``. The witness file is
``WORLD/witness.jsonl``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from schemas.digest import file_digest
from tests.fake_trainer import Trainer

FIGURES = {
    "prepare": {"rows": 1},
    "train": {"audio_s": 90.0, "steps": 10},
    "evaluate": {
        "test": {
            "utterances": 50,
            "base": {"words": 500, "wer": 0.4},
            "custom": {"words": 500, "wer": 0.2},
            "intervals": {"wer_change": [-0.25, -0.15]},
        },
        "general": None,
    },
    "export": {},
}


class Recipe(Trainer):
    def __init__(self, spec: dict[str, Any], world: Path) -> None:
        plans = world / "plans"
        plan = plans / f"{spec['run_id']}.json"
        if not plan.exists():
            plan = plans / "default.json"
        known = json.loads(plan.read_text()) if plan.exists() else {}
        spec["parameters"] = {"witness": str(world / "witness.jsonl"), "steps": 5} | known
        super().__init__(spec)
        self.world = world
        if spec["step"] != "train":
            self.parameters["checkpoint_every"] = 0
            self.steps = int(self.parameters.get("other_steps", 2))
        self.step_s = float(self.parameters.get("step_s_of", {}).get(spec["step"], self.step_s))

    def behaviour(self) -> str:
        fake = super().behaviour()
        if isinstance(fake, dict):
            return fake.get(str(self.spec["attempt"]), "succeed")
        return fake

    def finish(self) -> None:
        name = f"write_{self.spec['step']}"
        getattr(self, name)()
        artifacts = [
            {
                "path": path.relative_to(self.output).as_posix(),
                "sha256": file_digest(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and not path.relative_to(self.output).parts[0].startswith("checkpoint-")
        ]
        self.witness("end", self.steps)
        self.emit("result", figures=FIGURES[self.spec["step"]], artifacts=artifacts)

    def write_prepare(self) -> None:
        rows = [json.loads(line) for line in Path(self.spec["inputs"]["manifest"]).read_text().splitlines()]
        self.write_lines(
            "verdicts.jsonl",
            [
                {
                    "data_ids": row["data_ids"],
                    "row": row["row"],
                    "file": row["file"],
                    "verdict": "accepted",
                    "duration_s": 90.0,
                    "split": "train",
                }
                for row in rows
            ],
        )
        self.write("dataset/audio.i16", b"\0\0" * 100)
        self.write_lines("dataset/index.jsonl", [{"row": row["row"], "text": row["text"]} for row in rows])
        self.write("dataset/summary.json", b"{}")

    def write_train(self) -> None:
        assert (Path(self.spec["inputs"]["dataset"]) / "audio.i16").is_file(), "the dataset is gone"
        self.write("model/weights.bin", f"weights of {self.spec['run_id']}".encode() * 20)
        self.write_lines("curves.jsonl", [{"step": 1, "loss": 1.0}])

    def write_evaluate(self) -> None:
        assert (Path(self.spec["inputs"]["custom"]) / "model" / "weights.bin").is_file(), "the trained model is gone"
        self.write("evaluation.json", json.dumps(FIGURES["evaluate"]).encode())

    def write_export(self) -> None:
        weights = (Path(self.spec["inputs"]["custom"]) / "model" / "weights.bin").read_bytes()
        assert (Path(self.spec["inputs"]["evaluation"]) / "evaluation.json").is_file(), "the evaluation is gone"
        self.write("weights.bin", weights)
        self.write("attempt.json", json.dumps({"run": self.spec["run_id"], "attempt": self.spec["attempt"]}).encode())
        self.write("report.html", b"<p>fake")

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write(self, name: str, data: bytes) -> None:
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    # further behaviours

    def disk_full(self) -> None:
        """Writes until the disk is full and dies of it, as any program would."""
        try:
            with (self.output / "big").open("wb") as file:
                while True:
                    file.write(b"x" * 65_536)
                    file.flush()
        except OSError as error:
            self.emit(
                "failure",
                **{"class": "infrastructure"},
                code="disk_full",
                message="A disk of ours is full.",
                detail=str(error),
            )
            sys.exit(65)

    def lies(self) -> None:
        """Says that it left a file that is not there."""
        self.work()
        self.emit("result", figures={}, artifacts=[{"path": "weights.bin", "sha256": "0" * 64, "bytes": 5}])

    def kills_its_worker(self) -> None:
        """What a run does that brings its machine down."""
        supervisor = os.getppid()
        worker = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        time.sleep(60)


if __name__ == "__main__":
    Recipe(json.load(sys.stdin), Path(sys.argv[1])).run()
