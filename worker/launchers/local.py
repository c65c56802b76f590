"""Steps as child processes of this worker, each under a supervisor of its own."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from uuid import UUID

import worker
from schemas.steps import Step, StepSpec
from worker.confinement import ruleset_of, step_filter
from worker.launchers.devices import Devices, HeldDevice
from worker.launchers.environment import trainer_environment
from worker.launchers.interface import LauncherUnavailable
from worker.launchers.local_handle import LocalHandle, Wires
from worker.launchers.processes import SUPERVISED, SUPERVISES, SUPERVISOR_MARK
from worker.launchers.step_rules import Isolation, found_means, program_folders, rules_of
from worker.launchers.strays import stop_attempts, sweep_strays
from worker.launchers.supervisor import now

_SOURCE_ROOT: Final = str(Path(worker.__file__).parent.parent)
# -I -S: neither site nor environment nor working directory; the standard library and our own folder only
_SUPERVISOR: Final = (
    sys.executable,
    "-IS",
    "-c",
    f"import sys; sys.path.insert(0, {_SOURCE_ROOT!r}); from worker.launchers.supervisor import main; main()",
)


class Box:
    """A step's rules on their way to its process: two descriptors, closed here once passed on.

    Args:
        ruleset: of Landlock; None: none.
        program: a seccomp filter; empty: none.
        told: what they keep apart, for people.
    """

    def __init__(self, ruleset: int | None, program: bytes, told: str) -> None:
        self.ruleset, self.program, self.told = ruleset, _in_memory(program) if program else None, told

    @property
    def descriptors(self) -> list[int]:
        """Those that there are."""
        return [one for one in (self.ruleset, self.program) if one is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        descriptors = self.descriptors
        self.ruleset = self.program = None
        for descriptor in descriptors:
            os.close(descriptor)

    def __del__(self) -> None:
        self.__exit__()  # a start that was cancelled while the rules were made


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How trainers run on this machine."""

    command: Sequence[str]
    """The trainer's program with its arguments, for instance ``(python, "-m", "worker.trainer")``."""
    scratch_root: Path
    """Each step gets a private folder below it, removed when the step has ended."""
    patience_s: float = 600.0
    """How long a paused trainer is kept for a late renewal before it is killed."""
    memory_limit_bytes: int = 0
    """For all processes of a step together; 0 sets none."""
    log_limit_bytes: int = 64 * 2**20
    niceness: int = 5
    threads: int | None = None
    processes: int = 1
    """Over how many the step ``train`` spreads; each has a device of its own where devices are named."""
    devices: Sequence[str] = ()
    """CUDA devices, or ``cpu`` any number of times; empty: not limited here."""
    device_locks: Path = Path("/tmp/speech-training-devices")  # noqa: S108 - one for the host
    added_environment: Mapping[str, str] = field(default_factory=dict)
    garbage_limit: int = 100
    """Unreadable event lines borne with before the trainer is ended."""
    isolation: Isolation = "best_available"
    """Whether steps reach their own files only, no network and no other process: see ``worker.confinement``."""
    network: bool = False
    """Whether steps may use the network."""
    readable: Sequence[Path] = ()
    """What every step may read beside its inputs and its programs."""
    writable: Sequence[Path] = ()
    """What every step may write beside its own folders."""


class LocalLauncher:
    """Runs each step as a process on this host."""

    fetches = False

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._devices = Devices(options.device_locks, options.devices)
        self._handles: set[LocalHandle] = set()
        self._programs: tuple[Path, ...] | None = None
        self.means = found_means(options.isolation, processes=options.processes, network=options.network)

    async def start(self, spec: StepSpec, *, lease_s: float, log: Path) -> LocalHandle:
        """See ``Launcher.start``."""
        if lease_s <= 0:
            raise LauncherUnavailable("no_right", "the right to run ended before the step began")
        deadline = now() + lease_s  # whatever the preparations below take, the right ends when it ends
        processes = self._options.processes if spec.step is Step.TRAIN else 1
        held = self._devices.hold(processes)
        if self._options.devices and not held:
            wanted = f"{processes} of {', '.join(self._options.devices)} are not free"
            raise LauncherUnavailable("no_device", wanted)
        scratch = self._options.scratch_root / f"{spec.run_id}-{spec.attempt}-{spec.step}"
        try:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            environment = trainer_environment(
                spec,
                scratch,
                added=self._options.added_environment,
                devices=[device.name for device in held],
                threads=self._options.threads,
                processes=processes,
            )
            box = await asyncio.to_thread(self._box, spec, scratch, environment, processes)
            with box:
                handle = self._spawn(spec, deadline - now(), log, scratch, held, environment, box)
        except (OSError, subprocess.TimeoutExpired) as error:
            # no process, descriptor, memory or disk to be had: the host's trouble, not the run's
            raise LauncherUnavailable("cannot_fork", str(error)) from error
        finally:
            for device in held:
                os.close(device.descriptor)  # the supervisor's copy holds the lock now
        self._handles.add(handle)
        handle.on_end(lambda: self._let_go(handle, scratch))
        return handle

    async def adopt(self, run_id: UUID, attempt: int, step: Step, *, lease_s: float, log: Path) -> LocalHandle | None:
        """Nothing to adopt, ever: a local trainer does not outlive its worker."""
        _ = run_id, attempt, step, lease_s, log
        return None

    async def ensure_stopped(self, run_id: UUID, below_attempt: int) -> None:
        """See ``Launcher.ensure_stopped``. Knows this host (this pid namespace) only.

        A trainer on another host is ended there by its supervisor: paused at the end of its right, which lies
        before the end of the lease that had to run out for a new attempt to begin.
        """
        await asyncio.to_thread(stop_attempts, str(run_id), below_attempt)

    async def sweep(self) -> int:
        """See ``Launcher.sweep``: processes on this host that no supervisor watches any more."""
        return await asyncio.to_thread(sweep_strays)

    async def close(self) -> None:
        """End every step that still runs."""
        await asyncio.gather(*(handle.kill() for handle in tuple(self._handles)))

    def _box(self, spec: StepSpec, scratch: Path, environment: Mapping[str, str], processes: int) -> Box:
        """The rules for one step, as descriptors. Blocks.

        Raises:
            OSError: the kernel does not want to: nothing starts without what was promised.
        """
        if not (self.means.files or self.means.seccomp):
            return Box(None, b"", str(self.means))
        if self._programs is None:
            self._programs = program_folders(self._options.command, environment)
        rules = rules_of(
            spec,
            scratch,
            programs=self._programs,
            readable=self._options.readable,
            writable=self._options.writable,
            network=self._options.network,
            processes=processes,
        )
        program = step_filter(rules, self.means)  # the ruleset last: nothing may fail between it and its keeper
        return Box(ruleset_of(rules, self.means), program, str(self.means))

    def _spawn(  # noqa: PLR0913 - what `start` has found out
        self,
        spec: StepSpec,
        lease_s: float,
        log: Path,
        scratch: Path,
        held: Sequence[HeldDevice],
        environment: Mapping[str, str],
        box: Box,
    ) -> LocalHandle:
        wires = Wires.open(spec, log)
        passed = [wires.trainer_events, wires.spec, *box.descriptors, *(device.descriptor for device in held)]
        arguments = (
            f"events={wires.trainer_events}",
            f"spec={wires.spec}",
            f"deadline={now() + lease_s:.3f}",
            f"patience={self._options.patience_s}",
            f"memory={self._options.memory_limit_bytes}",
            f"log={self._options.log_limit_bytes}",
            f"nice={self._options.niceness}",
            f"ruleset={-1 if box.ruleset is None else box.ruleset}",
            f"filter={-1 if box.program is None else box.program}",
            f"isolation={box.told}",
            f"{SUPERVISED}{spec.run_id}:{spec.attempt}",
        )
        try:
            supervisor = subprocess.Popen(  # noqa: S603 - our own program
                [*_SUPERVISOR, *arguments, "--", *self._options.command],
                stdin=wires.supervisor_control,
                stdout=wires.supervisor_status,
                stderr=wires.log,
                cwd=scratch,
                env={**environment, SUPERVISOR_MARK: SUPERVISES},
                pass_fds=passed,
                start_new_session=True,  # a terminal's Ctrl-C is for the worker, who decides
            )
        except OSError:
            wires.close_ours()
            raise
        finally:
            wires.close_theirs()
        return LocalHandle(spec, supervisor, wires, lease_s, self._options.garbage_limit, log)

    async def _let_go(self, handle: LocalHandle, scratch: Path) -> None:
        self._handles.discard(handle)
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
