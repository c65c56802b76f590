"""Names: nothing hidden gets into them, and what is there already does nothing to a terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from schemas.api import ModelWanted, Name
from schemas.names import is_plain, visible
from worker.cli.parser import parser
from worker.cli.show import as_json, complain, rows, said
from worker.domain.data import clean_name

HIDDEN = [
    "\x00",
    "\t",
    "\n",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u2028",
    "\u2029",
    "\u202a",
    "\u202e",
    "\u2066",
    "\u2069",
]
HONEST = [
    "Clinic",
    "Ärztehaus №5",
    "می‌خواهم",
    "שלום\u200f",
    "クリニック",
    "👩‍⚕️ ward",
    "[/x] [bold]",
    "a\u00a0b",
    "x" * 200,
]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("where", ["{}a", "a{}b", "a{}"])
def test_a_name_with_a_hidden_character_is_refused_wherever_names_come_in(hidden, where, capsys):
    name = where.format(hidden)
    assert not is_plain(name)
    with pytest.raises(ValidationError):
        ModelWanted(name=name, language_id=1, organization_id=1)
    if name.strip() == name:
        with pytest.raises(ValueError, match="characters"):
            clean_name(f"{name}.wav")
    for typed in (
        ["organization-add", name],
        ["model-add", name, "--organization", "1", "--base", "en"],
        ["key-add", name],
    ):
        with pytest.raises(SystemExit):
            parser().parse_args(typed)
    assert hidden not in capsys.readouterr().err.replace("\n", "") or hidden == "\n"


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_name_in_any_script_is_taken(name):
    assert ModelWanted(name=name, language_id=1, organization_id=1).name == name
    assert parser().parse_args(["organization-add", name]).name == name


@given(st.text(max_size=30))
def test_the_pattern_of_the_interface_and_the_predicate_say_the_same(text):
    text = text.encode("utf-8", "ignore").decode()
    try:
        taken = TypeAdapter(Name).validate_python(text) == text
    except ValidationError:
        taken = False
    assert taken == (is_plain(text) and bool(text.strip(" ")))
    assert is_plain(visible(text))


def test_what_was_taken_before_is_shown_and_does_nothing(capsys):
    name = "a\x9b31m\u202eb\x1b]0;x\x07 [/x] [bold]c"
    rows("models", [{"name": name}], ("name",), json_wanted=False)
    said(f"model {name}", json_wanted=False)
    complain(f"no model {name}")
    as_json({"name": name})
    out = capsys.readouterr()
    for text in (out.out, out.err):
        assert is_plain(text.replace("\n", ""))
    assert out.out.count("[/x] [bold]c") == 3
    assert json.loads(out.out.splitlines()[-1])["name"] == name
