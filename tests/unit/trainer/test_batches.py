"""What each step learns from: single utterances at any speed, passages, nothing that a resumed training would not see."""

# ruff: noqa: E402 - torch is loaded only where it is there

import pytest

torch = pytest.importorskip("torch")

from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer.batches import Batches
from worker.trainer.dataset import Dataset
from worker.trainer.plan import Plan
from worker.trainer.ranks import ALONE
from worker.trainer.whisper import Whisper, processor

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


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
    settings = {"joined": 0.5, "speeds": (0.9, 1.1)}
    whole = batches(model, base, dataset, tmp_path / "whole", **settings)
    heard = [seen(whole.share(step)) for step in range(6)]
    resumed = batches(model, base, dataset, tmp_path / "resumed", **settings)
    for step in (4, 5):
        assert all(map(torch.equal, heard[step], seen(resumed.share(step))))


def test_passages_come_in_their_share_of_the_steps_and_hold_as_many_utterances(model, base, dataset, tmp_path):
    single = [batches(model, base, dataset, tmp_path / "0", joined=0.0).share(step) for step in range(6)]
    joined = [batches(model, base, dataset, tmp_path / "1", joined=1.0).share(step) for step in range(6)]
    assert {len(batch.inputs) for batch in single} == {8}
    assert max(len(batch.inputs) for batch in joined) < 8
    tokens = [sum(len(batch.wanted) for batch in batches) for batches in (single, joined)]
    assert tokens[1] > 0.9 * tokens[0]
    assert max(batch.inputs.shape[1] for batch in joined) > 2 * max(batch.inputs.shape[1] for batch in single)
