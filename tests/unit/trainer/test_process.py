"""The step as a process: its events, its exit codes, and what it does when nobody listens."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from schemas.events import Metric, Progress
from schemas.failures import FailureClass
from schemas.recipes import WHISPER
from schemas.steps import FAILURE_EXIT_CODE, STOPPED_EXIT_CODE
from tests.unit.trainer import tiny
from worker.trainer.ctranslate2_file import UnsupportedWeightsError, read_variables, to_transformers
from worker.trainer.emitter import ORPHANED_EXIT_CODE, Emitter
from worker.trainer.failures import StepFailureError, bad_data, classified

SEGMENTS = 40


def spec(tmp_path, **more):
    rows = [tiny.row(n, tiny.recording(tmp_path / f"{n}.wav", 1.0, n), tiny.spoken(n)) for n in range(SEGMENTS)]
    (tmp_path / "out").mkdir(exist_ok=True)
    told = {
        "run_id": str(tiny.RUN), "attempt": 1, "step": "prepare", "recipe": "whisper",
        "recipe_version": WHISPER.version, "seed": 1, "output": str(tmp_path / "out"),
        "inputs": {"manifest": str(tiny.manifest(tmp_path / "m.jsonl", rows))},
    }  # fmt: skip
    return json.dumps(told | more).encode()


def started(reading_end, writing_end):
    """The step's process, with the pipe as its descriptor 3."""

    def lay_pipe():
        os.dup2(writing_end, 3)
        if reading_end is not None:
            os.close(reading_end)

    return subprocess.Popen(
        [sys.executable, "-m", "worker.trainer"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(3, writing_end),
        preexec_fn=lay_pipe,  # noqa: PLW1509 - no threads here, and descriptor 3 must be ours
    )  # fmt: skip


def ran(told):
    reading, writing = os.pipe()
    process = started(reading, writing)
    os.close(writing)
    _, log = process.communicate(told, timeout=100)
    with os.fdopen(reading, encoding="utf-8") as lines:
        return process.returncode, [json.loads(line) for line in lines], log.decode()


def test_a_step_says_hello_first_and_its_result_last(tmp_path):
    code, events, _ = ran(spec(tmp_path))
    assert code == 0
    assert events[0]["event"] == "hello"
    assert events[-1]["event"] == "result"
    assert events[-1]["figures"]["accepted"] == SEGMENTS
    assert all((tmp_path / "out" / one["path"]).stat().st_size == one["bytes"] for one in events[-1]["artifacts"])


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"parameters": {"learning_rat": 1}}, "parameters_refused"),
        ({"attempt": 0}, "spec_unreadable"),
    ],
)
def test_orders_that_cannot_be_followed_are_our_fault_and_say_so(tmp_path, more, code):
    exit_code, events, _ = ran(spec(tmp_path, **more))
    assert exit_code == FAILURE_EXIT_CODE
    assert (events[-1]["class"], events[-1]["code"]) == ("bug", code)


def test_a_machine_with_another_version_of_the_recipe_is_no_place_for_the_run(tmp_path):
    exit_code, events, _ = ran(spec(tmp_path, recipe_version="0"))
    assert exit_code == FAILURE_EXIT_CODE
    assert (events[-1]["class"], events[-1]["code"]) == ("capacity", "recipe_unknown")


def test_a_term_signal_ends_the_step_with_stopped(tmp_path):
    reading, writing = os.pipe()
    process = started(reading, writing)
    os.close(writing)
    process.send_signal(signal.SIGSTOP)  # so that the signal is there before the orders are
    time.sleep(0)
    process.send_signal(signal.SIGCONT)
    with os.fdopen(reading, encoding="utf-8") as lines:
        process.stdin.write(spec(tmp_path))
        process.stdin.close()
        assert json.loads(lines.readline())["event"] == "hello"
        process.send_signal(signal.SIGTERM)
        last = [json.loads(line) for line in lines][-1]
    code = process.wait(timeout=60)
    process.stderr.close()
    assert (last["event"], code) in {("stopped", STOPPED_EXIT_CODE), ("result", 0)}  # it may have been done already


def test_a_step_whose_owner_is_gone_ends_at_once(tmp_path):
    reading, writing = os.pipe()
    process = started(reading, writing)
    os.close(writing)
    os.close(reading)
    process.communicate(spec(tmp_path), timeout=100)
    assert process.returncode == ORPHANED_EXIT_CODE


def test_progress_is_dropped_when_nobody_reads_and_results_wait():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    emitter = Emitter(writing)
    emitter.emit(Metric(name="loss", value=1.0))
    emitter.emit(Progress(percent=100))
    assert emitter.dropped == 2
    os.close(reading)
    os.close(writing)


def test_exceptions_become_the_class_that_says_what_follows():
    def found(error):
        return classified(error).failure_class

    assert found(MemoryError()) is FailureClass.OUT_OF_MEMORY
    assert (
        found(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) is FailureClass.OUT_OF_MEMORY
    )
    assert found(OSError(errno.ENOSPC, "No space left on device")) is FailureClass.INFRASTRUCTURE
    assert found(KeyError("weights")) is FailureClass.BUG
    assert found(bad_data("no_training_data", "None.")) is FailureClass.DATA
    assert isinstance(classified(ValueError("x")), StepFailureError)


def test_fused_projections_of_ctranslate2_are_split_for_transformers():
    fused = np.arange(12, dtype=np.float16).reshape(6, 2)
    state = to_transformers({
        "decoder/layer_1/self_attention/linear_0/weight": fused,
        "decoder/layer_1/self_attention/linear_0/bias": np.arange(6, dtype=np.float16),
        "decoder/layer_1/attention/linear_1/weight": fused,
        "decoder/layer_1/ffn/layer_norm/gamma": fused[0],
        "decoder/num_heads": np.int16(6),
    })  # fmt: skip
    layer = "model.decoder.layers.1"
    assert np.array_equal(state[f"{layer}.self_attn.k_proj.weight"], fused[2:4])
    assert f"{layer}.self_attn.k_proj.bias" not in state
    assert np.array_equal(state[f"{layer}.self_attn.v_proj.bias"], [4, 5])
    assert np.array_equal(state[f"{layer}.encoder_attn.v_proj.weight"], fused[3:])
    assert f"{layer}.final_layer_norm.weight" in state
    assert len(state) == 8


@pytest.mark.parametrize("blob", [b"", b"PK\x03\x04", (7).to_bytes(4, "little") + b"\x04\x00abc\x00" + bytes(4)])
def test_another_file_than_a_whisper_model_is_refused_by_name(blob):
    with pytest.raises(UnsupportedWeightsError):
        read_variables(blob)
