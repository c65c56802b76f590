"""Several processes that train one model together: on one host, a GPU or a share of the processors each.

torchrun's agent starts and watches them, inside the step's own process. They meet in a private folder and talk over
the loopback, so nobody else on the host's network reaches them. Each works on its share of every batch and the
gradients are summed: the batch, and so the schedule and the result, are those of one process, but for the order in
which numbers are added.
"""

import logging
import math
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, distributed

from schemas.events import Failure, Stopped
from schemas.failures import FailureClass
from schemas.steps import FAILURE_EXIT_CODE, PROCESSES, StepSpec
from worker.trainer.emitter import Emitter
from worker.trainer.failures import StepFailureError, StepStoppedError, classified
from worker.trainer.step import StepRun, StopRequest

_LOOK_S: Final = 0.2
"""Between two looks whether a stop was asked for."""
_SEEN_S: Final = 60.0
"""By then the agent has noticed a lost process, and ended the others."""
_PATIENCE: Final = timedelta(days=1)
"""How long one waits for another: whether a training stalls, its owner decides, who also pauses it."""


class RankLostError(Exception):
    """Another process of this training is gone."""


class Ranks:
    """This process among those that train together. Alone, everything it is given comes back as it was."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count

    @property
    def first(self) -> bool:
        """Whether it speaks for all: events, checkpoints and results are its alone."""
        return self.number == 0

    def share(self, groups: Sequence[int]) -> tuple[Sequence[int], bool]:
        """Its groups of a batch, and whether they count.

        Where there are fewer groups than processes the last ones take the first group, which then does not count:
        all of them always do the same.
        """
        mine = groups[self.number :: self.count]
        return (mine, True) if mine else (groups[:1], False)

    def part(self, amount: float) -> float:
        """Its amount as a part of everybody's: weights a mean over a share to make the mean over the whole."""
        return amount / self.sums(amount)[0]

    def sums(self, *amounts: float) -> list[float]:
        """Each amount, added up over all processes."""
        if self.count == 1:
            return list(amounts)
        added = torch.tensor(amounts, dtype=torch.float64)
        _summed(added)
        return [float(amount) for amount in added]

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Give every process the sum of all gradients: one message a step."""
        if self.count == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _summed(flat)
        for gradient, whole in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(whole.view_as(gradient))

    def agreed(self, steps_done: int) -> int:
        """The same number in every process, or no training: they would wait for one another for ever.

        Raises:
            StepFailureError: they differ.
        """
        if self.sums(steps_done)[0] != steps_done * self.count:
            raise StepFailureError(
                FailureClass.INFRASTRUCTURE,
                "disk",
                "The training machine could not read its disk.",
                f"process {self.number} found {steps_done} steps done, others found another number",
            )
        return steps_done

    def shared_array(self, file: Path, kind: DTypeLike, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
        """An array of zeros that all of them see, in a new file.

        What one writes before it takes part in a sum, the others see after that sum.

        Raises:
            OSError: the disk has no room for it. Found out only in writing to the array, that would be a bus error.
        """
        if self.first:
            file.unlink(missing_ok=True)
            with file.open("xb") as made:
                os.posix_fallocate(made.fileno(), 0, math.prod(shape) * np.dtype(kind).itemsize)
        self.sums(0)
        return np.memmap(file, kind, "r+", shape=shape)


ALONE: Final = Ranks()

Work = Callable[[StepRun, Ranks], None]
"""A step that several processes can do together."""


def in_ranks(run: StepRun, work: Work) -> None:
    """Do the step in as many processes as the operator set: here, or in each of several that torchrun starts.

    Raises:
        StepStoppedError: they were asked to stop and did, all after the same training step.
        StepFailureError: the first failure among them. One that a signal ended takes this process with it, by the
            same signal: what that means is known to whoever watches this process.
    """
    count = int(os.environ.get(PROCESSES) or 1)
    if count == 1:
        work(run, ALONE)
        return
    if 0 < torch.cuda.device_count() < count:
        raise StepFailureError(
            FailureClass.INFRASTRUCTURE,
            "too_few_gpus",
            "The training machine is not set up for this training.",
            f"{count} processes want a GPU each, {torch.cuda.device_count()} are to be seen",
        )
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // count))  # read by the children's torch; ours is loaded
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        stopped = _launched(run, work, count, Path(folder))
    if stopped is not None:
        raise StepStoppedError(stopped.steps_done)


def _launched(run: StepRun, work: Work, count: int, folder: Path) -> Stopped | None:
    """Under torchrun's agent to their common end."""
    # late: they cost a second that one process alone need not pay
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    # it would warn that it leaves signals to us, as it is meant to
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    launch = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(run.spec.run_id),
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "agent"),
            rdzv_configs={"store_type": "file"},  # its usual store listens on every interface, for everybody
            local_addr="127.0.0.1",
            max_restarts=0,  # another attempt is the owner's to decide
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        ),
        _rank,
    )
    stop = get_context("spawn").Event()
    events = Connection(os.dup(run.emitter.descriptor), readable=False)  # in this form it travels to another process
    with ThreadPoolExecutor(1, initializer=_hold_back_term) as agent:
        ending = agent.submit(launch, work, run.spec, run.parameters, events, stop, folder)
        while wait([ending], timeout=_LOOK_S).not_done:
            if run.stop.requested:
                stop.set()
    events.close()
    try:
        stopped: Stopped | None = ending.result()[0]
    except ChildFailedError as failed:
        raise _first_failure(folder, failed.get_first_failure()[1].exitcode) from failed
    return stopped


def _hold_back_term() -> None:
    """SIGTERM goes to the whole group; in the processes that this thread starts it waits, see `_rank`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _first_failure(folder: Path, exit_code: int) -> StepFailureError:
    """What the first process that failed said; without a word, an end like its own."""
    with suppress(FileNotFoundError):
        said = Failure.model_validate_json((folder / "failure").read_text(encoding="utf-8"))
        return StepFailureError(said.failure_class, said.code, said.message, said.detail)
    if exit_code < 0:
        with suppress(OSError):  # SIGKILL has no other meaning to begin with
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    return StepFailureError(
        FailureClass.CRASHED,
        f"exit_{exit_code}",
        "The training program ended unexpectedly.",
        f"one of its processes ended with exit code {exit_code}",
    )


def _rank(  # noqa: PLR0913 - what `_launched` has for it
    work: Work, spec: StepSpec, parameters: Any, events: Connection, stop: Any, folder: Path
) -> Stopped | None:
    """One of the processes, from its begin to its end; the word if it stopped.

    It is asked to stop by the step's process, not by SIGTERM, which is held back: it may come before anybody listens.
    """
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if number > 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
    asked = StopRequest()
    threading.Thread(target=lambda: asked(stop.wait()), daemon=True).start()
    emitter = Emitter(events.fileno() if number == 0 else silence)
    try:
        _join(number, count, folder)
        word = _worked(work, StepRun(spec, parameters, emitter, asked), Ranks(number, count))
        distributed.destroy_process_group()
    except RankLostError:
        # Ending by ourselves we could be taken for the one that was lost: the agent ends us when it has seen it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        time.sleep(_SEEN_S)
        os._exit(FAILURE_EXIT_CODE)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the step's owner must hear a class for it
        traceback.print_exc()
        _say(folder, classified(error))
        os._exit(FAILURE_EXIT_CODE)  # not by an exception: the agent would say it a second time
    return word


def _worked(work: Work, run: StepRun, ranks: Ranks) -> Stopped | None:
    try:
        work(run, ranks)
    except StepStoppedError as stopped:
        return Stopped(steps_done=stopped.steps_done)
    return None


def _join(number: int, count: int, folder: Path) -> None:
    """Find the others."""
    for transport in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[transport] = "lo"
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"
    place = f"file://{folder}/ranks"
    distributed.init_process_group(backend, place, timeout=_PATIENCE, rank=number, world_size=count)


def _say(folder: Path, failure: StepFailureError) -> None:
    """Leave word for the step's process; the first one counts."""
    told = Failure(
        failure_class=failure.failure_class,
        code=failure.code,
        message=failure.message[:2_000],
        detail=failure.detail[:20_000],
    )
    with suppress(FileExistsError), (folder / "failure").open("x", encoding="utf-8") as file:
        file.write(told.model_dump_json(by_alias=True))


def _summed(tensor: Tensor) -> None:
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as error:
        raise RankLostError(str(error)) from error
