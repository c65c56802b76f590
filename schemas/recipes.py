"""Recipes and their hyper-parameters as data: every name documented, with a default; unknown ones are refused."""

from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.steps import Step

ENTRY_POINTS: Final = "speech_training.recipes"


class WhisperParameters(BaseModel):
    """Hyper-parameters of the recipe `whisper`. Schedules count steps, never seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything drawn at random: the same data, settings and seed give the same model again."""
    epochs: int = Field(default=12, ge=1, le=100)
    """Passes over the training split."""
    batch_size: int = Field(default=16, ge=1, le=512)
    """Utterances a step; batches hold utterances of similar length."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1e-1)
    """Peak of AdamW's rate: linear warm-up, then a cosine down to a tenth of it."""
    warmup_fraction: float = Field(default=0.04, ge=0, le=1)
    """Share of all steps in which the rate rises."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    """Longest gradient, as a norm over all trained weights."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the decoder, while training."""
    distillation: float = Field(default=0.0, ge=0, le=100)
    """Weight of staying close to the base on the customer's own speech, where the base was right."""
    padding_s: float = Field(default=4.0, ge=0, le=30)
    """Silence after an utterance in the encoder's window while training; the window is never longer than 30 s."""
    anchor: float = Field(default=2.0, ge=0, le=1e6)
    """How much of a change is taken back by how much ordinary speech of the operator's general set notices it: 0 is
    none, more forgets less; see `worker.trainer.anchor`."""
    own_anchor: float = Field(default=0.03, ge=0, le=1e6)
    """The same where there is no general set: the customer's own speech has to stand for ordinary speech."""
    hearings: int = Field(default=3, ge=1, le=100)
    """Passes of the encoder over each utterance, every one in another voice; epochs take them in turn."""
    speed_perturbation: float = Field(default=0.18, ge=0, le=1)
    """How much faster or slower a hearing may be, as a part: 0.18 is 1/1.18 to 1.18 of the speed."""
    vocal_tract_perturbation: float = Field(default=0.12, ge=0, le=0.5)
    """How much higher or lower a hearing's formants may be at the same tempo, as a part."""
    equalizer_db: float = Field(default=3.0, ge=0, le=20)
    """How much louder or softer than recorded a hearing's frequencies may be."""
    joined: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that hear utterances of one speaker joined with pauses, in windows of up to 30 s: for speech
    that comes several sentences at a time."""
    anchor_hearings: int = Field(default=2, ge=1, le=100)
    """Passes of the encoder over the operator's general set, every one in other voices."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto`: bfloat16 where the processor or GPU has it."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints; when they are written changes no weight."""
    longest_segment_s: float = Field(default=30.0, gt=0, le=30)
    shortest_segment_s: float = Field(default=0.3, gt=0)
    fastest_speech_cps: float = Field(default=35.0, gt=0)
    """Characters a second; a transcript above it cannot belong to its audio."""


class Recipe(BaseModel):
    """What the worker may know of a recipe without loading it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    """Grows whenever the same inputs would give other weights: a checkpoint of another version is refused,
    and a run that began with another one starts over."""
    parameters: type[BaseModel]
    """Its hyper-parameters; light to import, for the worker validates with it."""
    dataset_parameters: frozenset[str] | None = None
    """Those that decide what `prepare` makes; a run that differs in others takes the same dataset. None: all."""
    steps: dict[Step, str]
    """The module of each step, with ``run(run: worker.trainer.step.StepRun)``. Imported by the trainer only."""


WHISPER: Final = Recipe(
    name="whisper",
    version="6",
    parameters=WhisperParameters,
    dataset_parameters=frozenset({"longest_segment_s", "shortest_segment_s", "fastest_speech_cps"}),
    steps={step: f"worker.trainer.{step.value}" for step in Step},
)


@cache
def recipes() -> dict[str, Recipe]:
    """Every recipe by name: ours, and those of installed packages.

    A package brings one with an entry point of the group ``speech_training.recipes`` that names its ``Recipe``.

    Raises:
        TypeError: an entry point names something else.
    """
    found = {WHISPER.name: WHISPER}
    for entry in entry_points(group=ENTRY_POINTS):
        recipe = entry.load()
        if not isinstance(recipe, Recipe):
            raise TypeError(f"{entry.value} is no Recipe")
        found[recipe.name] = recipe
    return found


def validated(recipe: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a run, complete with defaults.

    Raises:
        KeyError: no such recipe.
        pydantic.ValidationError: an unknown name or a value out of range; it names every field at fault.
    """
    return recipes()[recipe].parameters.model_validate(parameters).model_dump(mode="json")
