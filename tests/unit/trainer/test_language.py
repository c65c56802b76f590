"""A run in another language than English: trained, measured, exported and written down in it."""

# ruff: noqa: PLC0415 - torch is loaded only where a test needs it

import json

import pytest

pytest.importorskip("torch")

from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer.base_weights import BaseWeightsError, check_language

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn of themselves
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    return tiny.tiny_whisper(tmp_path_factory.mktemp("base"), "en", "de", "zh")


def test_every_step_hears_and_writes_the_run_s_language(multilingual, dataset, tmp_path, monkeypatch):
    from worker.trainer import evaluate, export, train, whisper

    asked = []
    prompt = whisper.Whisper.prompt
    monkeypatch.setattr(
        whisper.Whisper, "prompt", lambda model, language: asked.append(language) or prompt(model, language)
    )

    def ran(step, module, inputs, **parameters):
        asked.clear()
        run, _ = tiny.step_run(step, tmp_path / step.value, inputs, language="de", **parameters)
        module.run(run)
        assert set(asked) == {"de"}, step
        return run.output

    short = {"epochs": 1, "hearings": 1, "padding_s": 1.0, "precision": "float32"}
    inputs = {"base": multilingual, "dataset": dataset, "general": dataset}
    inputs["custom"] = inputs["train"] = ran(Step.TRAIN, train, inputs, joined=0.5, **short)
    inputs["evaluation"] = ran(Step.EVALUATE, evaluate, inputs, precision="float32")
    exported = ran(Step.EXPORT, export, inputs)
    settings = json.loads((exported / "model/generation_config.json").read_text())
    assert (settings["language"], settings["task"]) == ("de", "transcribe")
    assert json.loads((multilingual / "generation_config.json").read_text()).get("language") is None


def test_without_spaces_between_words_the_error_rate_is_that_of_characters(multilingual, dataset, tmp_path):
    from worker.trainer import evaluate

    inputs = {"base": multilingual, "custom": multilingual, "dataset": dataset}
    run, events = tiny.step_run(Step.EVALUATE, tmp_path / "out", inputs, language="zh", precision="float32")
    evaluate.run(run)
    measured = tiny.read_events(events)[-1]["figures"]["test"]
    said = [row["text"] for row in evaluate.read_rows(run.output)]
    assert measured["base"]["words"] == sum(len(text.replace(" ", "")) for text in said)
    assert measured["base"]["wer"] == measured["base"]["cer"]


def test_a_prompt_names_the_language_and_one_that_the_base_does_not_know_is_refused(multilingual, base):
    from worker.trainer.whisper import UnknownLanguageError, Whisper

    several, english = Whisper(multilingual), Whisper(base)
    begun = [several.tokenizer.convert_ids_to_tokens(token) for token in several.prompt("de")]
    assert begun == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert len(english.prompt("en")) == 2
    for model, language in ((several, "fr"), (english, "de")):
        with pytest.raises(UnknownLanguageError, match=language):
            model.prompt(language)


@pytest.mark.parametrize(
    ("languages", "wanted", "refused"),
    [
        ((), None, None),
        ((), "en", None),
        ((), "de", "does not know the language 'de', only en"),
        (("en", "de", "zh"), "de", None),
        (("en", "de", "zh"), "xx", "does not know the language 'xx', only de, en, zh"),
        (("en", "de", "zh"), None, "multilingual: name one language of de, en, zh"),
    ],
)
def test_a_base_is_registered_for_a_language_that_it_knows(multilingual, base, languages, wanted, refused):
    folder = multilingual if languages else base
    if refused is None:
        check_language(folder, wanted)
    else:
        with pytest.raises(BaseWeightsError, match=refused):
            check_language(folder, wanted)
