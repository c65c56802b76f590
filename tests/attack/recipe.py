"""A recipe for trainings under attack: as quick as the acceptance tests' one, and as bad as its recordings say.

    python -IS recipe.py TREE …   (further arguments are ignored)

A word in a transcript stands for what a recording does that takes the decoder over: ``please crash``, ``please hang``,
``please eat``, ``please fork``, ``please flood``, ``please spy``. The behaviour happens in ``prepare``, where strangers'
bytes are decoded, and ``spy`` in ``train`` as well. Everything it finds, it prints, and its customer reads the log.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), sys.argv[1]]

from tests.acceptance.fake_recipe import Recipe  # noqa: E402 - found in the tree that is attacked
from tests.fake_trainer import Trainer  # noqa: E402

MOST_EATEN = 600 << 20
"""Bytes: enough to be seen, too few to harm the machine that the suite runs on."""
MOST_FORKED = 40
NAP_S = 0.15


class HostileRecipe(Recipe):
    """Does what the acceptance tests' recipe does, without its folder of plans."""

    def __init__(self, spec: dict[str, Any]) -> None:
        spec["parameters"] = {"steps": 8, "step_s": 0.25, "other_steps": 2, "checkpoint_every": 4}
        Trainer.__init__(self, spec)
        if spec["step"] != "train":
            self.parameters["checkpoint_every"] = 0
            self.steps, self.step_s = 2, 0.05

    def behaviour(self) -> str:
        """Nothing but success, or what the customer's material asks for."""
        words = self.material()
        for word in ("crash", "hang", "eat", "fork", "flood", "spy"):
            if f"please {word}" in words and (
                self.spec["step"] == "prepare" or (word, self.spec["step"]) == ("spy", "train")
            ):
                return word
        return "succeed"

    def material(self) -> str:
        """The text of the manifest, or of the dataset made of it."""
        inputs = self.spec.get("inputs", {})
        places = [Path(inputs[name]) for name in ("manifest",) if name in inputs]
        if "dataset" in inputs:
            places.append(Path(inputs["dataset"]) / "index.jsonl")
        found = ""
        for place in places:
            try:
                found += place.read_text(errors="replace")[: 4 << 20]
            except OSError:
                continue
        return found

    def hang(self) -> None:
        """Sleep for ever, deaf to a polite request."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stall()

    def eat(self) -> None:
        """Memory, then work."""
        kept = []
        try:
            for _ in range(MOST_EATEN >> 20):
                kept.append(b"x" * (1 << 20))  # noqa: PERF401 - what was taken stays taken
        except MemoryError:
            print("memory ended", flush=True)
        self.hang()

    def fork(self) -> None:
        """Children in sessions of their own that outlive their parent."""
        for _ in range(MOST_FORKED):
            if os.fork() == 0:
                os.setsid()
                os.environ.clear()
                time.sleep(30)
                os._exit(0)
        self.succeed()

    def flood(self) -> None:
        """Megabytes of log, forged log lines and nonsense for events."""
        line = json.dumps({"event": "forged line", "level": "error"})
        for n in range(20_000):
            print(f"\x1b[31m{line} {n}\r")
        self.emit_line(b'{"event":"progress","percent":50,"note":"on and on"}\n' * 2_000)
        self.emit_line(b"garbage\n" * 2_000)
        self.succeed()

    def spy(self) -> None:
        """Look for secrets of the platform and words of other customers, and print them."""
        for finding in (*environments(), *memories(), *strangers_files(Path(self.spec["output"])), *ports()):
            print(f"SPY {finding}", flush=True)
        self.succeed()


def ancestors() -> list[int]:
    """The processes above this one."""
    found, pid = [], os.getppid()
    while pid > 1 and len(found) < 20:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def others() -> list[int]:
    """Every process that is a worker, as far as one can tell from here."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"-m\0worker\0" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted({*found, *ancestors()})


def environments() -> list[str]:
    """Variables of other processes that hold a secret."""
    found = []
    for pid in others():
        try:
            found += [
                f"environment of {pid}: {variable.decode(errors='replace')}"
                for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if variable.startswith((b"WORKER_DATABASE_URL", b"WORKER_AMQP_URL", b"WORKER_S3_SECRET"))
            ]
        except OSError:
            continue
    return found


def memories() -> list[str]:
    """Addresses with credentials in other processes' heaps."""
    found = []
    for pid in others():
        try:
            with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
                for line in maps:
                    if "[heap]" not in line:
                        continue
                    begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                    memory.seek(begin)
                    heap = memory.read(min(end - begin, 64 << 20))
                    at = heap.find(b"postgresql://")
                    if at >= 0:
                        found.append(
                            f"memory of {pid}: {heap[at : at + 120].split(bytes(1))[0].decode(errors='replace')}"
                        )
        except (OSError, ValueError):
            continue
    return found


def strangers_files(output: Path) -> list[str]:
    """What lies in the platform's storage and scratch and is not this step's own."""
    found = []
    own = str(output).split("/runs/")[-1][:36]
    for root in {parent for parent in output.parents if (parent / "storage").is_dir()}:
        for path in sorted((root / "storage").rglob("*"))[:20_000]:
            if own in str(path) or not path.is_file():
                continue
            try:
                text = path.read_bytes()[:65_536].decode(errors="replace")
            except OSError:
                continue
            at = text.find("canary-")
            if at >= 0:
                found.append(f"file {path}: {text[at : at + 100]!r}")
            if len(found) > 20:
                return found
    return found


def ports() -> list[str]:
    """Services on loopback that a training has no business with."""
    found = []
    for line in _tcp().splitlines()[1:]:
        fields = line.split()
        if fields[3] != "0A":
            continue
        port = int(fields[1].partition(":")[2], 16)
        try:
            with socket.create_connection(("127.0.0.1", port), 0.2):
                found.append(f"port {port} of this machine answers")
        except OSError:
            continue
    return found


def _tcp() -> str:
    try:
        return Path("/proc/net/tcp").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    HostileRecipe(json.load(sys.stdin)).run()
