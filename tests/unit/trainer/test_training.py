"""Training by steps: bit-equal when resumed, deterministic, measured, exported."""

# ruff: noqa: PLC0415, E402 - torch is loaded only where a test needs it

import collections
import json
import math
import shutil

import pytest

torch = pytest.importorskip("torch")

from schemas.digest import file_digest, tree_digest
from schemas.failures import FailureClass
from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer import objective
from worker.trainer.failures import StepFailureError, StepStoppedError

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn of themselves
    pytest.mark.timeout(600),  # a busy machine takes minutes to load torch and to convert a model
]
SHORT = {
    "hearings": 2,
    "joined": 0.5,
    "epochs": 2,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "padding_s": 1.0,
    "precision": "float32",
}
A_DAY_S = 86_400.0


def train(folder, base, dataset, stop=None, **more):
    from worker.trainer import emitter
    from worker.trainer import train as module

    inputs = {"base": base, "dataset": dataset} | {key: more.pop(key) for key in ("general",) if key in more}
    run, events = tiny.step_run(Step.TRAIN, folder, inputs, stop, **(SHORT | more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emitter, "_PROGRESS_EVERY_S", 0)  # every word is heard
        module.run(run)
    return run.output, tiny.read_events(events)


@pytest.fixture(scope="module")
def trained(base, dataset, tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "train", base, dataset)


def test_training_lowers_the_loss_and_leaves_whole_weights(trained):
    from safetensors.numpy import load_file

    folder, events = trained
    figures = events[-1]["figures"]
    assert figures["steps"] == 6
    assert figures["loss_last"] < figures["loss_first"]
    assert "model.encoder.conv1.weight" in load_file(folder / "model.safetensors")
    assert [one for one in events if one["event"] == "progress"][-1]["percent"] == 100
    assert len((folder / "curves.jsonl").read_text().splitlines()) == 6


def test_only_cross_attention_and_feed_forward_layers_of_the_decoder_learn(trained, base):
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(trained[0] / "model.safetensors")
    learned = {name.split("layers.")[-1] for name in before if not before[name].equal(after[name])}
    parts = {name.split(".")[1] for name in learned}
    assert parts == {"encoder_attn", "encoder_attn_layer_norm", "fc1", "fc2"}
    assert not any("k_proj" in name for name in learned)
    assert all("decoder.layers" in name for name in before if not before[name].equal(after[name]))


@pytest.mark.parametrize(
    ("looks", "steps_done", "during", "room"),
    [
        (1, 2, "training", 2**30),
        (4, 3, "measuring progress", 0),  # encoder states are kept in the first part only
        (12, 6, "measuring progress", 2**30),
        (15, 6, "keeping ordinary speech", 2**30),  # listening to it
        (21, 6, "keeping ordinary speech", 2**30),  # taking back what it notices
    ],
)
def test_training_stopped_anywhere_ends_in_the_same_bytes(
    trained, base, dataset, tmp_path, monkeypatch, looks, steps_done, during, room
):
    from worker.trainer import states

    whole, _ = trained
    with pytest.raises(StepStoppedError) as stopped:
        train(tmp_path / "train", base, dataset, tiny.StopAfter(looks))
    events = tiny.read_events(tmp_path / "train.events")
    assert [one["note"] for one in events if one["event"] == "progress"][-1] == during
    kept = [one for one in events if one["event"] == "checkpoint"][-1]
    assert kept["steps_done"] == stopped.value.steps_done == steps_done
    assert tree_digest(tmp_path / "train" / kept["path"]) == kept["sha256"]
    file = tmp_path / "train" / kept["path"] / "state.pt"
    torch.save(torch.load(file) | {"seconds": A_DAY_S}, file)
    monkeypatch.setattr(states, "KEPT_BYTES_LIMIT", room)
    folder, events = train(tmp_path / "train", base, dataset)
    assert events[-1]["figures"]["resumed_from_step"] == kept["steps_done"] > 0
    assert events[-1]["figures"]["seconds"] > A_DAY_S, "the seconds before count"
    assert file_digest(folder / "model.safetensors") == file_digest(whole / "model.safetensors")
    assert (folder / "curves.jsonl").read_text() == (whole / "curves.jsonl").read_text()


def test_looks_at_the_development_split_and_the_anchor_are_signs_of_progress(trained):
    told = [one for one in trained[1] if one["event"] == "progress"]
    noted = collections.Counter((one["note"], one["steps_done"]) for one in told)
    groups, layers = 4, 5
    assert noted["measuring progress", 3] == noted["measuring progress", 6] == groups
    assert noted["keeping ordinary speech", 6] == 6 + layers


def test_each_utterance_of_a_group_is_heard_in_its_own_voice(base, dataset, tmp_path):
    from worker.trainer.dataset import Dataset
    from worker.trainer.states import EncoderStates
    from worker.trainer.voices import Voice
    from worker.trainer.whisper import Whisper, processor

    data = Dataset(dataset)
    one = data.utterances[0]
    assert data.sound([one], 2.0, [0.5])[0, 24_000:31_000].abs().max() > 0.01 > data.sound([one], 2.0)[0, -1]
    model = Whisper(base).to_processor(processor())
    settings = {"padding_s": 1.0, "precision": torch.float32, "file": tmp_path / "states"}
    voices = [Voice(), Voice(), Voice(speed=0.8), Voice(warp=1.1)]
    states = EncoderStates(model, data, [one] * 4, [[0, 1, 2, 3]], voices=voices, **settings).of([0])
    assert states.shape[1] == math.ceil(50 * (one.seconds / 0.8 + 1.0))
    plain, again, slow, warped = states
    assert plain.equal(again)
    assert not any(plain.equal(other) for other in (slow, warped))


def test_a_checkpoint_of_another_training_is_refused(trained, base, dataset, tmp_path, capsys):
    with pytest.raises(StepStoppedError):
        train(tmp_path / "train", base, dataset, tiny.StopAfter(2), learning_rate=1e-3)
    _, events = train(tmp_path / "train", base, dataset)
    assert events[-1]["figures"]["resumed_from_step"] == 0
    assert "of another training (parameters): starting over" in capsys.readouterr().out


def test_a_damaged_checkpoint_costs_time_and_no_more(trained, base, dataset, tmp_path):
    with pytest.raises(StepStoppedError):
        train(tmp_path / "train", base, dataset, tiny.StopAfter(2))
    state = next((tmp_path / "train" / "checkpoints").glob("step-*")) / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    folder, events = train(tmp_path / "train", base, dataset)
    assert events[-1]["figures"]["resumed_from_step"] == 0
    assert file_digest(folder / "model.safetensors") == file_digest(trained[0] / "model.safetensors")


def test_the_stronger_the_anchor_the_nearer_the_base(trained, base, dataset, tmp_path):
    from safetensors.numpy import load_file

    def moved(folder):
        before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
        return sum(float(((after[name] - before[name]) ** 2).sum()) for name in before)

    free, events = train(tmp_path / "0" / "train", base, dataset, general=dataset, anchor=0.0)
    assert events[-1]["figures"]["anchor"] == "general"
    held, _ = train(tmp_path / "1" / "train", base, dataset, general=dataset, anchor=50.0)
    assert trained[1][-1]["figures"]["anchor"] == "own"
    assert moved(held) < moved(trained[0]) < moved(free)


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_training_whose_numbers_end_is_over_at_once_and_keeps_no_spoiled_weights(
    base, dataset, tmp_path, monkeypatch, spoiled
):
    from worker.trainer import train as module

    steps = iter(range(1, 7))

    def loss(*given):
        total, known = objective.loss(*given)
        if next(steps) < 3:
            return total, known
        return total * math.inf, known * (math.nan if spoiled == "loss" else 1)

    monkeypatch.setattr(module, "loss", loss)
    with pytest.raises(StepFailureError) as failed:
        train(tmp_path / "train", base, dataset, checkpoint_every_s=0)
    assert (failed.value.failure_class, failed.value.code) == (FailureClass.DATA, "training_diverged")
    assert "step 3 of 6" in failed.value.detail
    assert "lower learning rate" in failed.value.message
    events = tiny.read_events(tmp_path / "train.events")
    assert [one["steps_done"] for one in events if one["event"] == "checkpoint"] == [1, 2]
    assert [one["value"] is not None for one in events if one["event"] == "metric"] == [True] * 2


def test_no_training_split_is_a_failure_of_the_data(base, dataset, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("audio.i16", "summary.json"):
        (folder / name).write_bytes((dataset / name).read_bytes())
    lines = [json.loads(line) | {"split": "test"} for line in (dataset / "index.jsonl").read_text().splitlines()]
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StepFailureError) as failed:
        train(tmp_path / "train", base, folder)
    assert failed.value.code == "no_training_data"


def test_both_models_are_measured_on_the_test_split_and_exported_in_both_shapes(trained, base, dataset, tmp_path):
    from worker.trainer import evaluate, export

    inputs = {"base": base, "custom": trained[0], "dataset": dataset}
    general = {"general": dataset}
    run, events = tiny.step_run(Step.EVALUATE, tmp_path / "evaluate", inputs | general, precision="float32")
    evaluate.run(run)
    figures = tiny.read_events(events)[-1]["figures"]
    assert figures["test"]["utterances"] == 6
    assert figures["unseen_voices"]["utterances"] == 2
    assert figures["general"]["utterances"] == 6
    assert figures["general_set"] == {"utterances": 46, "test": 6}
    assert 2 <= figures["passages"]["utterances"] <= 6
    assert 0 <= figures["passages"]["custom"]["dropped"] <= figures["passages"]["utterances"]
    low, high = figures["test"]["intervals"]["wer_change"]
    assert low <= figures["wer_custom"] - figures["wer_base"] <= high
    rows = evaluate.read_rows(run.output)
    assert sum(one["base_words"]["length"] for one in rows if one["set"] == "test") == figures["test"]["base"]["words"]

    inputs |= {"evaluation": run.output, "train": trained[0]}
    run, events = tiny.step_run(Step.EXPORT, tmp_path / "export", inputs)
    export.run(run)
    left = {one["path"] for one in tiny.read_events(events)[-1]["artifacts"]}
    assert {"model/model.safetensors", "model/README.md", "ctranslate2/model.bin"} <= left
    assert file_digest(run.output / "model/model.safetensors") == file_digest(trained[0] / "model.safetensors")
    card = (run.output / "model/README.md").read_text()
    assert "| test | " in card
    assert f"custom {figures['passages']['custom']['dropped']} of {figures['passages']['utterances']}" in card


def test_speech_that_the_anchor_was_fitted_to_measures_no_forgetting(trained, base, dataset, tmp_path):
    from worker.trainer import evaluate

    general = tmp_path / "general"
    shutil.copytree(dataset, general)
    index = general / "index.jsonl"
    index.write_text(index.read_text().replace('"test"', '"train"'))
    inputs = {"base": base, "custom": trained[0], "dataset": dataset, "general": general}
    run, events = tiny.step_run(Step.EVALUATE, tmp_path / "evaluate", inputs, precision="float32")
    evaluate.run(run)
    figures = tiny.read_events(events)[-1]["figures"]
    assert figures["general"] is None
    assert figures["general_set"] == {"utterances": 46, "test": 0}


def test_a_model_that_writes_nothing_only_in_one_shape_is_not_published():
    from worker.trainer.export import _spoken

    with pytest.raises(StepFailureError) as failed:
        _spoken("ctranslate2", "  ", wordless=False)
    assert failed.value.code == "export_unusable"
