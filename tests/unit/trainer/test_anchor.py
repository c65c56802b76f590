"""What the anchor takes back of a trained change, and what it listens to."""

# ruff: noqa: E402 - torch is loaded only where a test needs it

import copy

import pytest

torch = pytest.importorskip("torch")

from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer.anchor import GROUPS, Moments, anchored, moments, ordinary_speech, some
from worker.trainer.train import trained_weights
from worker.trainer.whisper import Whisper, processor

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
OUTPUTS, INPUTS = 3, 5


def second_moments(size):
    rows = torch.randn(4 * size, size)
    return rows.T @ rows


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.randn(OUTPUTS, INPUTS), Moments(second_moments(INPUTS), second_moments(OUTPUTS))


def test_what_is_kept_is_the_nearest_change_that_is_worth_its_cost(layer):
    change, shown = layer
    kept = shown.worth(change, 0.7).requires_grad_()
    inputs, outputs = (one / one.trace() * len(one) for one in (shown.inputs, shown.outputs))
    cost = ((kept - change) ** 2).sum() + 0.7 * (outputs @ kept @ inputs @ kept.T).trace()
    cost.backward()
    assert kept.grad.abs().max() < 1e-4


def test_without_strength_everything_is_kept(layer):
    change, shown = layer
    assert torch.allclose(shown.worth(change, 0.0), change, atol=1e-5)


def test_a_change_that_no_ordinary_input_meets_is_kept():
    torch.manual_seed(0)
    change, inputs = torch.randn(OUTPUTS, INPUTS), torch.zeros(INPUTS, INPUTS)
    inputs[0, 0] = 1.0
    kept = Moments(inputs, second_moments(OUTPUTS)).worth(change, 1e6)
    assert torch.allclose(kept[:, 1:], change[:, 1:], atol=1e-4)
    assert kept[:, 0].abs().max() < 1e-3


def test_weights_and_bias_of_a_layer_change_together_and_norms_stay_as_trained(layer):
    _, shown = layer
    base = {
        "one.weight": torch.randn(OUTPUTS, INPUTS - 1),
        "one.bias": torch.randn(OUTPUTS),
        "norm.weight": torch.ones(4),
    }
    trained = {name: weight + 1 for name, weight in base.items()}
    published = anchored(base, trained, [("one", shown)], 0.5)
    kept = shown.worth(torch.ones(OUTPUTS, INPUTS), 0.5)
    assert torch.allclose(published["one.weight"] - base["one.weight"], kept[:, :-1], atol=1e-5)
    assert torch.allclose(published["one.bias"] - base["one.bias"], kept[:, -1], atol=1e-5)
    assert published["norm.weight"].equal(trained["norm.weight"])


def test_every_trained_layer_is_watched_the_same_way_again(base, dataset, tmp_path):
    model = Whisper(base).to_processor(processor())
    teacher = copy.deepcopy(model.decoder).requires_grad_(requires_grad=False)
    trained = trained_weights(model, 0.0)
    run, _ = tiny.step_run(
        Step.TRAIN, tmp_path / "train", {"base": base, "general": dataset}, anchor_hearings=2, padding_s=1.0
    )
    first, again = (
        moments(model, teacher, trained, ordinary_speech(run, model, torch.float32), torch.float32) for _ in range(2)
    )
    assert {name for layer in first for name in (f"{layer}.weight", f"{layer}.bias") if name in trained} == {
        name for name in trained if "norm" not in name
    }
    for name, shown in first.items():
        assert shown.inputs.equal(again[name].inputs)
        assert shown.outputs.equal(again[name].outputs)
        assert shown.outputs.trace() > 0
    assert all(weight.grad is None for weight in trained.values())


def test_without_a_general_set_there_is_no_ordinary_speech(base, tmp_path):
    run, _ = tiny.step_run(Step.TRAIN, tmp_path / "train", {"base": base})
    assert ordinary_speech(run, Whisper(base), torch.float32) is None


def test_long_recordings_are_listened_to_in_part():
    assert list(some(3)) == [0, 1, 2]
    assert GROUPS // 2 <= len(some(1_000)) <= GROUPS
