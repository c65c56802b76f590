"""Recipes are data: known by name, their hyper-parameters validated, others brought by packages."""

from importlib.metadata import EntryPoint

import pytest
from pydantic import BaseModel, ValidationError

from schemas import recipes as module
from schemas.recipes import WHISPER, Recipe, recipes, validated
from schemas.steps import Step


class Brought(BaseModel):
    layers: int = 3


BROUGHT = Recipe(name="brought", version="7", parameters=Brought, steps=dict.fromkeys(Step, "their.module"))
NO_RECIPE = 5


@pytest.fixture
def fresh():
    recipes.cache_clear()
    yield
    recipes.cache_clear()


def brought_by(monkeypatch, name):
    entry = EntryPoint("brought", f"{__name__}:{name}", module.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda _entry: globals()[name])
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == module.ENTRY_POINTS else [])


def test_a_package_brings_a_recipe_without_a_change_to_the_worker(monkeypatch, fresh):
    brought_by(monkeypatch, "BROUGHT")
    assert recipes() == {"whisper": WHISPER, "brought": BROUGHT}
    assert validated("brought", {"layers": 5}) == {"layers": 5}


def test_an_entry_point_that_names_no_recipe_is_named(monkeypatch, fresh):
    brought_by(monkeypatch, "NO_RECIPE")
    with pytest.raises(TypeError, match="NO_RECIPE"):
        recipes()


def test_unknown_hyper_parameters_are_refused_by_name():
    with pytest.raises(ValidationError) as refused:
        validated("whisper", {"epocs": 3, "learning_rate": -1})
    assert {fault["loc"][0] for fault in refused.value.errors()} == {"epocs", "learning_rate"}


def test_parameters_come_complete_with_their_defaults():
    assert validated("whisper", {})["epochs"] == WHISPER.parameters().epochs
