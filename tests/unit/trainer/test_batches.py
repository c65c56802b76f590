"""What each step learns from: single utterances at any speed, passages, nothing that a resumed training would not see."""

# ruff: noqa: E402 - torch is loaded only where it is there

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from schemas.failures import FailureClass
from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer import states as encoder_states
from worker.trainer.batches import Batches
from worker.trainer.dataset import Dataset
from worker.trainer.failures import classified
from worker.trainer.objective import Targets
from worker.trainer.plan import Plan
from worker.trainer.ranks import ALONE
from worker.trainer.tokens import LONGEST_TEXT
from worker.trainer.whisper import Whisper, processor

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]

LETTERS = 256
"""The tiny model's tokens from here on are special ones."""


@pytest.fixture(scope="module")
def model(base):
    return Whisper(base).to_processor(processor())


def batches(model, base, dataset, folder, **parameters):
    inputs = {"base": base, "dataset": dataset}
    run, _ = tiny.step_run(Step.TRAIN, folder / "train", inputs, padding_s=1.0, precision="float32", **parameters)
    run.output.mkdir(parents=True, exist_ok=True)
    data = Dataset(dataset)
    utterances = data.of("train")
    plan = Plan(tuple(one.seconds for one in utterances), 8, 2, run.spec.seed, 0.1)
    return Batches(run, ALONE, model, data, utterances, plan, torch.float32)


def seen(batch):
    return batch.states, batch.inputs, batch.wanted


def test_a_step_hears_the_same_whatever_was_heard_before_it(model, base, dataset, tmp_path):
    settings = {"joined": 0.5, "hearings": 2}
    whole = batches(model, base, dataset, tmp_path / "whole", **settings)
    heard = [seen(whole.share(step)) for step in range(6)]
    resumed = batches(model, base, dataset, tmp_path / "resumed", **settings)
    for step in (4, 5):
        assert all(map(torch.equal, heard[step], seen(resumed.share(step))))


@pytest.mark.parametrize("short", ["limit", "disk"])
def test_all_that_a_step_keeps_has_one_limit_and_what_is_not_kept_is_heard_the_same(
    model, base, dataset, tmp_path, monkeypatch, short
):
    settings = {"joined": 0.5, "hearings": 3}
    whole = batches(model, base, dataset, tmp_path / "whole", **settings)
    kept = {file.name: file.stat() for file in (tmp_path / "whole" / "train").glob(".states-*")}
    assert {".states-0", ".states-1", ".states-2", ".states-joined"} <= kept.keys()
    assert all(512 * file.st_blocks >= file.st_size for file in kept.values()), "their room is theirs at once"
    limit = 2.5 * kept[".states-0"].st_size

    def held():
        return sum(file.stat().st_size for file in (tmp_path / "few").glob("train/.states-*"))

    if short == "limit":
        monkeypatch.setattr(encoder_states, "KEPT_BYTES_LIMIT", limit)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * limit - held()))
    few = batches(model, base, dataset, tmp_path / "few", **settings)
    assert kept[".states-0"].st_size < held() <= limit
    for step in range(6):
        assert all(map(torch.equal, seen(whole.share(step)), seen(few.share(step))))


def test_a_disk_without_room_for_what_is_kept_is_a_failure_of_the_disk(model, base, dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as failed:
        batches(model, base, dataset, tmp_path)
    assert (classified(failed.value).failure_class, classified(failed.value).code) == (
        FailureClass.INFRASTRUCTURE,
        "disk",
    )


def test_every_epoch_hears_the_next_voice_of_each_utterance_and_then_the_first_again(model, base, dataset, tmp_path):
    epochs = [heard_texts(batches(model, base, dataset, tmp_path, hearings=2), epoch) for epoch in range(3)]
    assert epochs[0].keys() == epochs[1].keys() == epochs[2].keys()
    for text, states in epochs[0].items():
        shared = min(len(states), len(epochs[1][text]), len(epochs[2][text]))
        assert not states[:shared].equal(epochs[1][text][:shared])
        assert states[:shared].equal(epochs[2][text][:shared])


def heard_texts(heard, epoch):
    """The states of every utterance of an epoch, by the tokens of its text."""
    steps = [heard.share(3 * epoch + step) for step in range(3)]
    return by_text([(batch.inputs, batch.states) for batch in steps])


def by_text(batches):
    """The states of every utterance in batches of inputs and states, by the tokens of its text."""
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    return {tuple(inputs[inputs < LETTERS].tolist()): states for inputs, states in pairs}


def test_passages_come_in_their_share_of_the_steps_and_hold_as_many_utterances(model, base, dataset, tmp_path):
    single = [batches(model, base, dataset, tmp_path / "0", joined=0.0).share(step) for step in range(6)]
    joined = [batches(model, base, dataset, tmp_path / "1", joined=1.0).share(step) for step in range(6)]
    assert {len(batch.inputs) for batch in single} == {8}
    assert max(len(batch.inputs) for batch in joined) < 8
    tokens = [sum(len(batch.wanted) for batch in batches) for batches in (single, joined)]
    assert tokens[1] > 0.9 * tokens[0]
    assert max(batch.inputs.shape[1] for batch in joined) > 2 * max(batch.inputs.shape[1] for batch in single)


def test_the_longest_transcript_has_its_place_in_the_decoder_and_words_in_brackets_are_no_orders(model):
    """A multilingual base's prompt has two tokens more than the tiny one's."""
    assert model.end not in model.words("so <|endoftext|> he said")
    inputs, _ = Targets(model, ["e" * (LONGEST_TEXT - 1)], "en").batch([0], model.filters.device)
    assert LONGEST_TEXT < inputs.shape[1] <= model.config.max_target_positions - 2
