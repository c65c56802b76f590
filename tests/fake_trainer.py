"""A trainer that does as it is told, by the protocol of the real one: standard library only, starts in 20 ms.

``parameters.fake`` in the spec says how it behaves: a word for every step of the recipe, or ``{step: word}``
(the steps not named succeed). Further parameters: ``steps`` (10), ``step_s`` (0.01 seconds each),
``checkpoint_every`` (0: never), ``witness`` (a file), ``figures`` ({step: figures of its result}),
``megabytes`` (for ``memory``), ``report`` (for ``environment``: the file to write), ``lines`` (for ``chatty``).

The witness file is append-only, one JSON object a line, one write each: run, attempt, step, pid, what (start,
step, checkpoint, term, end, or a grandchild's tick), n, at (seconds of CLOCK_BOOTTIME). It is written by the
trainers themselves and by nobody else.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from schemas.digest import tree_digest

LONGEST_LINE = 65_536


class Trainer:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.parameters = spec.get("parameters", {})
        self.output = Path(spec["output"])
        self.steps = int(self.parameters.get("steps", 10))
        self.step_s = float(self.parameters.get("step_s", 0.01))
        self.stop_asked = False
        self.witness_fd = None
        if "witness" in self.parameters:
            self.witness_fd = os.open(self.parameters["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def behaviour(self) -> str:
        fake = self.parameters.get("fake", "succeed")
        return fake.get(self.spec["step"], "succeed") if isinstance(fake, dict) else fake

    def witness(self, what: str, n: int = 0) -> None:
        if self.witness_fd is None:
            return
        line = {
            "run": self.spec["run_id"],
            "attempt": self.spec["attempt"],
            "step": self.spec["step"],
            "language": self.spec.get("language"),
            "pid": os.getpid(),
            "what": what,
            "n": n,
            "at": time.clock_gettime(time.CLOCK_BOOTTIME),
        }
        os.write(self.witness_fd, json.dumps(line).encode() + b"\n")

    def emit(self, event: str, **fields: Any) -> None:
        self.emit_line(json.dumps({"event": event, **fields}).encode() + b"\n")

    def emit_line(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(3, line) :]
        except BrokenPipeError:
            os._exit(1)  # the owner is gone

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self.on_term)
        self.witness("start")
        print(f"fake trainer: {self.spec['step']} {self.behaviour()}", flush=True)
        self.emit("hello", recipe="fake", recipe_version="1", pid=os.getpid())
        getattr(self, self.behaviour())()

    def on_term(self, *_: object) -> None:
        self.stop_asked = True

    # what every step does

    def work(self) -> None:
        """All steps, resuming from a checkpoint, stopping when asked."""
        done = 0
        if "checkpoint" in self.spec.get("inputs", {}):
            done = json.loads((Path(self.spec["inputs"]["checkpoint"]) / "state.json").read_text())["steps_done"]
        every = int(self.parameters.get("checkpoint_every", 0))
        while done < self.steps:
            if self.stop_asked:
                self.witness("term", done)
                self.save(done)
                self.emit("stopped", steps_done=done)
                self.witness("end", done)
                sys.exit(75)
            time.sleep(self.step_s)
            done += 1
            self.witness("step", done)
            self.emit("progress", percent=100 * done / self.steps, steps_done=done, steps=self.steps)
            self.emit("metric", name="loss", value=1 / done, steps_done=done)
            if every and done % every == 0:
                self.save(done)

    def save(self, done: int) -> None:
        path = self.output / f"checkpoint-{done}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "state.json").write_text(json.dumps({"steps_done": done}))
        size = sum(file.stat().st_size for file in path.iterdir())
        self.emit("checkpoint", path=path.name, sha256=tree_digest(path), bytes=size, steps_done=done)
        self.witness("checkpoint", done)

    def finish(self) -> None:
        figures = self.parameters.get("figures", {}).get(self.spec["step"], {"steps": self.steps})
        self.emit("result", figures=figures, artifacts=[])
        self.witness("end", self.steps)

    # the behaviours

    def succeed(self) -> None:
        self.work()
        self.finish()

    def fail(self) -> None:
        self.emit(
            "failure",
            **{"class": "data"},
            code="too_little_audio",
            message="Only 3 of 60 seconds can be used.",
            detail="fake",
        )
        sys.exit(65)

    def crash(self) -> None:
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def exit_3(self) -> None:
        print("Traceback (most recent call last):\nRuntimeError: something nobody foresaw", file=sys.stderr)
        sys.exit(3)

    def no_result(self) -> None:
        self.work()

    def stall(self) -> None:
        while True:
            time.sleep(3600)

    def memory(self) -> None:
        kept = [b"x" * 2**20 for _ in range(int(self.parameters.get("megabytes", 300)))]
        self.witness("step", len(kept))
        self.stall()

    def memory_error(self) -> None:
        raise MemoryError("Unable to allocate 7.3 TiB")

    def garbage(self) -> None:
        self.emit_line(b"not json\n\xff\xfe\x00\n{}\n[1,2]\n" + b'{"event":"unheard_of"}\n{"event":"progress"\n')
        self.succeed()

    def garbage_flood(self) -> None:
        while True:
            self.emit_line(b"garbage\n" * 100)

    def long_line(self) -> None:
        self.emit_line(b'{"event":"progress","percent":1,"note":"' + b"x" * (3 * LONGEST_LINE) + b'"}\n')
        self.succeed()

    def flood(self) -> None:
        line = b'{"event":"progress","percent":50,"note":"on and on"}\n'
        for _ in range(100):
            self.emit_line(line * 1000)
        self.finish()

    def chatty(self) -> None:
        for n in range(int(self.parameters.get("lines", 100_000))):
            print(f"line {n} of a very chatty trainer")
        self.finish()

    def environment(self) -> None:
        descriptors = {}
        for entry in Path("/proc/self/fd").iterdir():
            if entry.is_symlink():  # the listing's own descriptor is gone by now
                descriptors[entry.name] = str(entry.readlink())
        facts = {
            "environment": dict(os.environ),
            "arguments": Path("/proc/self/cmdline").read_bytes().decode().split("\0"),
            "descriptors": descriptors,
            "folder": str(Path.cwd()),
            "ignored_signals": [
                number.name
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
                if signal.getsignal(number) == signal.SIG_IGN
            ],
        }
        Path(self.parameters["report"]).write_text(json.dumps(facts))
        self.finish()

    def ignore_term(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.emit("progress", percent=1, note="ignoring SIGTERM")
        self.stall()

    def busy(self) -> None:
        """Uses one processor second, then succeeds."""
        while time.process_time() < 1:
            pass
        self.finish()

    def grandchild(self) -> None:
        self.spawn_grandchild(new_session=False)
        self.succeed()

    def setsid_grandchild(self) -> None:
        self.spawn_grandchild(new_session=True)
        self.succeed()

    def unmarked_grandchild(self) -> None:
        """A new session and an empty environment: nothing marks it but its ancestry."""
        self.spawn_grandchild(new_session=True, environment={})
        self.succeed()

    def spawn_grandchild(self, *, new_session: bool, environment: dict[str, str] | None = None) -> None:
        code = (
            "import os,sys,time\n"
            "if os.fork(): os._exit(0)\n"  # orphaned at once: its parent is no process of the trainer's
            "n = 0\n"
            "while True:\n"
            "    n += 1\n"
            "    line = sys.argv[1].replace('PID', str(os.getpid())).replace('NUMBER', str(n))\n"
            "    os.write(9, line.encode() + b'\\n')\n"
            "    time.sleep(0.02)\n"
        )
        line = json.dumps(
            {
                "run": self.spec["run_id"],
                "attempt": self.spec["attempt"],
                "step": self.spec["step"],
                "pid": "PID",
                "what": "tick",
                "n": "NUMBER",
            }
        )
        assert self.witness_fd is not None
        pid = os.fork()
        if pid == 0:
            if new_session:
                os.setsid()
            os.dup2(self.witness_fd, 9)
            os.execve(
                sys.executable,
                [sys.executable, "-IS", "-c", code, line],
                dict(os.environ) if environment is None else environment,
            )
        os.waitpid(pid, 0)


if __name__ == "__main__":
    Trainer(json.load(sys.stdin)).run()
