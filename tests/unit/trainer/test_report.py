"""The report of a run: what it says, and what customers' texts cannot make it do."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
import soundfile
import yaml

from tests.unit.trainer.reported import HOSTILE, SENTENCES, context, export_run, left_by_steps, report_of, rows
from worker.domain.run import RunInputs
from worker.trainer.dataset import Dataset
from worker.trainer.model_card import model_card
from worker.trainer.report import pictures, sound
from worker.trainer.report.compared import columns, sentences, terms, words
from worker.trainer.report.markup import Markup, duration, fill, points

pytestmark = pytest.mark.trainer


class Elements(HTMLParser):
    """Tags with attributes, and scripts' texts, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sources: dict[str, str] = {}
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in {"script", "style"}:
            self.sources[self._open] = data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize(
    ("said", "base", "custom", "laid"),
    [
        ("start metolazone", "start metal zone", "start metolazone",
         [("start", "start", "start"), ("metolazone", "metal zone", "metolazone")]),
        ("a b", "a", "b", [("a", "a", ""), ("b", "", "b")]),
        ("a b", "a x b", "a b", [("a", "a", "a"), ("", "x", ""), ("b", "b", "b")]),
        ("a", "", "", [("a", "", "")]),
        ("", "made up", "", [("", "made up", "")]),
        ("", "", "", []),
        ("a", "a b c", "c a", [("", "", "c"), ("a", "a", "a"), ("", "b c", "")]),
    ],
)  # fmt: skip
def test_texts_are_laid_word_under_word(said, base, custom, laid):
    assert columns(said, base, custom) == laid


def test_every_word_of_every_text_has_its_place():
    for said, base, custom, *_ in SENTENCES:
        laid = columns(said, base, custom)
        for place, text in enumerate((said, base, custom)):
            assert " ".join(column[place] for column in laid if column[place]) == text


def test_the_worst_sentences_of_the_custom_model_come_first():
    order = [one["text"] for one in sentences(rows())]
    assert order[:2] == ["After lunch.", "Stop the pump."]


def test_words_that_improved_and_words_that_got_worse_are_told_with_what_was_written_instead():
    found = words(sentences(rows()))
    first = found["improved"][0]
    assert (first["word"], first["said"], first["base_missed"], first["custom_missed"]) == ("metolazone", 2, 2, 0)
    assert "metal zone" in first["base_heard_as"]
    assert {word["word"] for word in found["worse"]} == {"the", "after", "lunch"}
    assert "ordinary" not in str(found), "the general set is no speech of the customer's"


def test_rare_terms_are_counted_one_by_one():
    (term,) = terms(rows(), lambda word: 3 if word == "metolazone" else 1)
    assert term == {"word": "metolazone", "said": 2, "base_heard": 0, "custom_heard": 2}


def test_the_page_answers_first_and_shows_every_part(tmp_path):
    html, figures = report_of(tmp_path, left_by_steps(tmp_path, rows()), context())
    assert html.index("The custom model is better, and in use") < html.index('id="words-title"')
    assert "It is better." in html
    for told in ("Voices it never heard", "Ordinary speech", "Nothing can be heard.", "Record it again.", "quiet.wav",
                 "metolazone", "The weights of step 20", "1.5 GB", "1.0 min", "13 min", "a" * 64,
                 "1 wait for"):  # fmt: skip
        assert told in html, told
    assert figures["run_id"].endswith("5")
    assert figures["curves"]["dev_loss"][0] == [10, 0.3]
    assert figures["digests"]["trained weights (sha256)"] == hashlib.sha256(b"weights").hexdigest()
    assert len(re.findall("<audio", html)) == 4


def test_the_page_asks_nobody_for_anything_and_its_policy_forbids_it(tmp_path):
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context())
    found = Elements(html)
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "style"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:audio/mpeg;base64,", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    (policy,) = [one["content"] for one in found.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for source in found.sources.values():
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(found.sources) == 2


def test_hostile_texts_and_names_stay_texts(tmp_path):
    plain, _ = report_of(tmp_path / "plain", made(tmp_path / "plain", rows()), context())
    said = [(HOSTILE.lower(), HOSTILE, HOSTILE[::-1], HOSTILE, "test"), *SENTENCES[1:]]
    places = made(tmp_path / "hostile", rows(said, text=HOSTILE, file=HOSTILE))
    report = context()["data_report"] | {
        "counts": {HOSTILE: 2},
        "rejections": [{"file": HOSTILE, "reason": HOSTILE, "reason_code": HOSTILE}],
    }
    told = context(data_report=report, model_name=HOSTILE, gate_sentence=HOSTILE, inputs={"base_key": HOSTILE})
    html, _ = report_of(tmp_path / "hostile", places, told)
    for tag in ("script", "style", "img"):
        assert len(Elements(html).of(tag)) == len(Elements(plain).of(tag)), tag
    assert "owned" in html


def made(folder, found):
    folder.mkdir()
    return left_by_steps(folder, found)


def test_texts_that_no_encoding_can_write_are_written_all_the_same(tmp_path):
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context(gate_sentence="a\ud800b\0c"))
    assert "a?b\ufffdc" in html


def test_without_test_speech_the_page_says_so(tmp_path):
    html, figures = report_of(tmp_path, left_by_steps(tmp_path, []), context(gate="too_little_test_data"))
    for told in ("Too little test speech to tell", "No test speech was measured", "Nothing was measured"):
        assert told in html
    assert figures["sentences"] == []


def test_without_general_set_speakers_and_development_data_the_page_says_so(tmp_path):
    found = rows([(said, base, custom, None, "test") for said, base, custom, *_ in SENTENCES], seen=(None,))
    places = left_by_steps(tmp_path, found)
    index = places["dataset"] / "index.jsonl"
    index.write_text(index.read_text().replace('"anna"', "null"))
    (places["train"] / "train.json").write_text("{}")
    (places["train"] / "curves.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    html, _ = report_of(tmp_path, places, context())
    assert "Your test speech" in html
    assert "No speakers are named" in html
    assert "Ordinary speech <span" not in html
    assert "too few development recordings" in html


def test_points_that_are_no_numbers_are_left_out_of_the_picture(tmp_path):
    places = left_by_steps(tmp_path, rows())
    with (places["train"] / "curves.jsonl").open("a") as curves:
        curves.write('{"step": 31, "loss": NaN, "dev_loss": Infinity}\n')
    html, figures = report_of(tmp_path, places, context())
    assert [curve[-1][0] for curve in figures["curves"].values()] == [30, 30]
    assert not re.search(r'="(nan|inf)', html)


def test_a_general_set_of_which_nothing_was_kept_apart_measures_no_forgetting_and_the_page_says_so(tmp_path):
    places = left_by_steps(tmp_path, [row for row in rows() if row["set"] == "test"])
    evaluation = places["evaluation"] / "evaluation.json"
    figures = json.loads(evaluation.read_text()) | {"general_set": {"utterances": 40, "test": 0}}
    evaluation.write_text(json.dumps(figures))
    html, _ = report_of(tmp_path, places, context())
    assert "Ordinary speech was not measured" in html
    assert "Ordinary speech <span" not in html


@pytest.mark.parametrize(("language", "so"), [("en", False), ("de", False), ("ja", True)])
def test_where_characters_are_counted_the_page_says_so(tmp_path, language, so):
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context(), language)
    assert ("every character counts as a word" in html) is so


@pytest.mark.parametrize(("language", "counted"), [("no", "Word"), ("ja", "Character")])
def test_the_model_card_names_the_base_and_the_language_as_the_run_s_inputs_do(tmp_path, language, counted):
    inputs = RunInputs(
        manifest="m", manifest_sha256="a" * 64, rows=1, base_language_id=1, base_key="ward-2", base_weights="bases/x",
        base_version="b" * 64, recipe="whisper", recipe_version="1", seed=3, language=language,
    )  # fmt: skip
    told = context(inputs=inputs.model_dump(mode="json"), model_name="Ward 2")
    run = export_run(tmp_path / "export", left_by_steps(tmp_path, rows()), told, inputs.language)
    _, front, card = model_card(run, {}, {}).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "automatic-speech-recognition", "language": language,
        "base_model": "ward-2",
    }  # fmt: skip
    assert f"# Ward 2\n\nMade from `ward-2` (weights {'b' * 16}) by the recipe `whisper` 1" in card
    assert f"{counted} error rate (" in card


def test_a_step_that_is_told_nothing_still_makes_a_page(tmp_path):
    html, figures = report_of(tmp_path, left_by_steps(tmp_path, rows()), {})
    assert "The model is trained" in html
    assert figures["data"]["counts"] == {"silent": 2}
    assert "Nothing can be heard." in html


def test_a_report_that_cannot_be_made_costs_no_model(tmp_path, capsys):
    places = left_by_steps(tmp_path, rows())
    (places["evaluation"] / "rows.jsonl").write_text("no JSON\n")
    with pytest.raises(AssertionError):
        report_of(tmp_path, places, context())
    assert "The report could not be made" in capsys.readouterr().out
    assert not [*(tmp_path / "export").iterdir()]


def test_recordings_fill_their_room_and_no_more_the_most_changed_first(tmp_path):
    many = [(f"word {n}", "wrong one" if n % 2 else f"word {n}", f"word {n}", "anna", "test") for n in range(40)]
    places = left_by_steps(tmp_path, rows(many), seconds=2.0)
    laid = sentences(rows(many))
    found = sound.clips(Dataset(places["dataset"]), laid, most_bytes=150_000)
    assert 10 <= len(found) <= 20
    assert all(row % 2 for row in found), "those that changed come before those that did not"
    assert sum(map(len, found.values())) <= 150_000
    heard = base64.b64decode(next(iter(found.values())).partition(",")[2])
    samples, rate = soundfile.read(io.BytesIO(heard))
    assert rate == 16_000
    assert len(samples) / rate == pytest.approx(2.0, abs=0.2)
    shutil.rmtree(places["dataset"])


def test_text_is_escaped_and_markup_is_not():
    assert fill("<b>{}</b>{}{}", "<&\"'>", Markup("<i>"), None) == "<b>&lt;&amp;&quot;&#x27;&gt;</b><i>"


def test_numbers_are_written_for_people():
    assert [duration(seconds) for seconds in (0, 0.44, 42, 90, 1340, 3600, 4000)] == [
        "0 s", "0.4 s", "42 s", "1.5 min", "22 min", "1 h", "1 h 7 min",
    ]  # fmt: skip
    assert [points(change) for change in (-0.1234, 0.05, 0.0, -0.0001)] == ["\u221212.3", "+5.0", "0.0", "0.0"]
    assert pictures.ticks(0.73) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert [pictures.ticks(never) for never in (math.nan, math.inf)] == [[], []]
    assert pictures.smoothed([(step, 1.0) for step in range(100)]) == [(step, 1.0) for step in range(100)]
