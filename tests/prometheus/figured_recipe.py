"""The fake recipe, whose plan also says what it measured: ``figures`` by step, ``rejected`` reason codes, ``pace_s``."""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.acceptance.fake_recipe import FIGURES, Recipe


class Figured(Recipe):
    def emit(self, event: str, **fields: Any) -> None:
        if event == "progress" and self.spec["step"] == "train":
            fields |= {
                "audio_s": 12.5 * fields["steps_done"],
                "eta_s": self.step_s * (self.steps - fields["steps_done"]),
            }
        super().emit(event, **fields)

    def finish(self) -> None:
        wanted = self.parameters.get("figures", {}).get(self.spec["step"])
        if wanted is not None:
            FIGURES[self.spec["step"]] = wanted
        super().finish()

    def write_prepare(self) -> None:
        super().write_prepare()
        path = self.output / "verdicts.jsonl"
        accepted = [json.loads(line) for line in path.read_text().splitlines()]
        for number, reason in enumerate(self.parameters.get("rejected", [])):
            accepted.append(
                {"data_ids": [10_000 + number], "file": f"{number}.wav", "verdict": "rejected", "reason_code": reason}
            )
        self.write_lines("verdicts.jsonl", accepted)

    def wait(self) -> None:
        """Says nothing for ``pace_s`` seconds, then goes on."""
        time.sleep(float(self.parameters.get("pace_s", 1)))
        self.succeed()


if __name__ == "__main__":
    Figured(json.load(sys.stdin), Path(sys.argv[1])).run()
