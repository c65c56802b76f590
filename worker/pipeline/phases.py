"""The phases of a run, in order. Each reads what the one before left and says what it made."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import TypeAdapter, ValidationError

from schemas.failures import FailureClass
from schemas.recipes import recipes, validated
from schemas.splits import Split, row_key, split_of, split_text_key
from schemas.status import Gate
from schemas.steps import ManifestRow, Source, Step
from worker import __version__
from worker.domain.gate import General, Measured, decide
from worker.domain.outcome import Succeeded, Version
from worker.domain.run import RunInputs
from worker.errors import StepFailed
from worker.pipeline.addresses import Address, base_weights, inside, manifest_for_step, reached
from worker.pipeline.attempt import Attempt
from worker.pipeline.checkpoints import newest_checkpoint
from worker.pipeline.load import ManifestLimits, build_manifest
from worker.pipeline.manifest_writer import Earlier, splits_in, verdicts_in
from worker.pipeline.parts import Parts
from worker.pipeline.patience import until_answered
from worker.pipeline.report import DataReport, check_floor, merge_verdicts
from worker.pipeline.steps import Made, content_key, run_step
from worker.store.models import BaseLanguage

_DIGESTS: Final = TypeAdapter(dict[int, str])
_DIGESTS_LIMIT: Final = 256 * 2**20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The dataset, and what became of every file."""

    dataset: Made
    report: DataReport

    @property
    def place(self) -> Address:
        """The dataset itself; the verdicts lie beside it."""
        return inside(self.dataset.place, "dataset")


async def load(attempt: Attempt, parts: Parts) -> RunInputs:
    """Fix what this run trains on, for every attempt: manifest, base, recipe, hyper-parameters, seed."""
    run = attempt.run
    if run.inputs is not None:
        return await _with_the_recipe_installed_here(attempt, parts, run.inputs)
    base = await _base_language(attempt, parts)
    settled = _settled(base.recipe, base.hyper_parameters | run.wanted_parameters)
    items = parts.data.of_model(run.custom_model_id)
    folder = attempt.folder / "load"
    limits = ManifestLimits(
        longest_segment_s=settled["parameters"].get("longest_segment_s", ManifestLimits.longest_segment_s)
    )
    earlier = await _earlier_splits(attempt, parts)
    manifest = await build_manifest(items, parts.storage, folder, limits, attempt.sign_of_progress, earlier)
    prefix = f"runs/{run.id}/{run.attempt}/load"
    await parts.storage.put_file(manifest.path, f"{prefix}/manifest.jsonl")
    await parts.storage.put_file(manifest.verdicts_path, f"{prefix}/verdicts.jsonl")
    await parts.storage.put_file(manifest.digests_path, f"{prefix}/digests.json")
    inputs = RunInputs(
        manifest=f"{prefix}/manifest.jsonl",
        manifest_sha256=manifest.sha256,
        rows=manifest.rows,
        base_language_id=base.id,
        base_key=base.key,
        base_weights=base.weights,
        base_version=base.version,
        recipe=base.recipe,
        **settled,
        general_set=base.general_set,
        language=base.language,
        load_verdicts=f"{prefix}/verdicts.jsonl",
        digests=f"{prefix}/digests.json",
    )
    return await until_answered(lambda: parts.runs.fix_inputs(attempt.fence, inputs), parts.clock, what="fix inputs")


async def _earlier_splits(attempt: Attempt, parts: Parts) -> Earlier:
    """What each row was in the model's trainings so far; a version of before 0.2.0 had them by a hash.

    What came after that version was in no training, and is free for the test that the version may never have had.
    """
    model_id = attempt.run.custom_model_id
    known = await until_answered(lambda: parts.data.splits_of(model_id), parts.clock, what="read earlier splits")
    if known:
        return lambda row: known.get(row_key(row.audio_sha256, row.offset_s))
    last = await until_answered(
        lambda: parts.data.last_of_newest_version(model_id), parts.clock, what="look for a version"
    )
    if last is None:
        return lambda _: None
    return lambda row: _split_before_0_2_0(row) if row.data_ids[0] <= last else None


def _split_before_0_2_0(row: ManifestRow) -> Split:
    """A recording in pieces was on one side as a whole."""
    in_pieces = row.source == "cue" or row.offset_s is not None
    return split_of(row.audio_sha256 if in_pieces else split_text_key(row.text))


async def _with_the_recipe_installed_here(attempt: Attempt, parts: Parts, fixed: RunInputs) -> RunInputs:
    """The run's inputs as they are, or with this worker's version of the recipe: then the attempt starts over.

    Either way, for a release may also be taken back. What another version made stays stored under that version, and
    serves the next attempt that has it.
    """
    installed = recipes().get(fixed.recipe)
    if installed is not None and installed.version == fixed.recipe_version:
        return fixed
    base = await _base_language(attempt, parts)
    own = base.hyper_parameters if base.recipe == fixed.recipe else {}
    settled = _settled(fixed.recipe, own | attempt.run.wanted_parameters)
    _log.warning(
        "the run began with another recipe version: starting over with the one installed here",
        recipe=fixed.recipe,
        version=fixed.recipe_version,
        installed=settled["recipe_version"],
    )
    await until_answered(
        lambda: parts.runs.follow_recipe(attempt.fence, settled), parts.clock, what="follow the recipe"
    )
    return fixed.model_copy(update=settled)


async def _base_language(attempt: Attempt, parts: Parts) -> BaseLanguage:
    number = attempt.run.base_language_id
    base = await until_answered(lambda: parts.models.base_language(number), parts.clock, what="read base language")
    assert base is not None, "a foreign key says so"
    return base


def _settled(recipe: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What of a run's inputs depends on the recipe's version: that of this worker, and settings with its defaults.

    Raises:
        StepFailed: this worker does not have the recipe, or the recipe refuses the settings.
    """
    if recipe not in recipes():
        raise StepFailed(
            FailureClass.CAPACITY,
            "unknown_recipe",
            "The training is waiting for a machine that can train this language.",
            f"the run needs recipe {recipe!r}; this worker has: {', '.join(recipes())}",
        )
    try:
        parameters = validated(recipe, asked)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise StepFailed(
            FailureClass.DATA, "bad_hyper_parameters", f"These settings cannot be used: {faults}.", str(error)
        ) from error
    return {
        "recipe_version": recipes()[recipe].version,
        "parameters": parameters,
        "seed": int(parameters.get("seed", 0)),  # not of the run's id: the same data again gives the same model again
    }


async def prepare(attempt: Attempt, parts: Parts, inputs: RunInputs) -> Prepared:
    """Decode, judge every file, make the dataset; fail only below the floor of usable audio."""
    manifest = await manifest_for_step(attempt, parts, inputs)
    addresses = {"manifest": manifest, "base": await base_weights(parts, inputs)}  # whose tokenizer bounds transcripts
    key = content_key(Step.PREPARE, inputs, inputs.manifest_sha256, inputs.base_version)
    dataset = await run_step(attempt, parts, Step.PREPARE, inputs, addresses, key)
    assert inputs.load_verdicts is not None
    known = await parts.storage.materialize(inputs.load_verdicts)
    made = await parts.storage.materialize(f"{dataset.address}/verdicts.jsonl")
    report = await asyncio.to_thread(lambda: merge_verdicts(verdicts_in(known), verdicts_in(made)))
    digests = b"{}" if inputs.digests is None else await parts.storage.get_bytes(inputs.digests, _DIGESTS_LIMIT)
    judged = await asyncio.to_thread(_DIGESTS.validate_json, digests)
    await until_answered(
        lambda: parts.data.set_verdicts(attempt.fence, attempt.run.custom_model_id, report.items, judged),
        parts.clock,
        what="write verdicts",
    )
    manifest_path = await parts.storage.materialize(inputs.manifest, sha256=inputs.manifest_sha256)
    await until_answered(
        lambda: parts.data.keep_splits(attempt.fence, splits_in(manifest_path, made)), parts.clock, what="keep splits"
    )
    await until_answered(
        lambda: parts.runs.record_data_report(attempt.fence, report.summary()),
        parts.clock,
        what="write data report",
    )
    parts.metrics.data_prepared(report.summary()["files"], report.counts, report.usable_s)
    check_floor(report, parts.minimum_audio_s)
    return Prepared(dataset, report)


async def train(attempt: Attempt, parts: Parts, inputs: RunInputs, prepared: Prepared) -> Made:
    """Train from the base's weights, or on from the newest checkpoint."""
    addresses: dict[str, Address] = {
        "dataset": prepared.place,
        "base": await base_weights(parts, inputs),
    }
    if inputs.general_set is not None:
        addresses["general"] = await reached(parts, Source(address=inputs.general_set))
    checkpoint = await newest_checkpoint(attempt, parts, inputs)
    if checkpoint is not None:
        addresses["checkpoint"] = checkpoint
    key = content_key(
        Step.TRAIN,
        inputs,
        str(attempt.run.id),
        prepared.dataset.sha256,
        inputs.base_version,
        inputs.general_set or "",
        inputs.language,
        str(inputs.seed),
    )
    return await run_step(attempt, parts, Step.TRAIN, inputs, addresses, key)


async def evaluate(attempt: Attempt, parts: Parts, inputs: RunInputs, prepared: Prepared, trained: Made) -> Made:
    """Decode the test split once with base and custom model, and count the errors."""
    addresses: dict[str, Address] = {
        "dataset": prepared.place,
        "base": await base_weights(parts, inputs),
        "custom": trained.place,
    }
    if inputs.general_set is not None:
        addresses["general"] = await reached(parts, Source(address=inputs.general_set))
    key = content_key(
        Step.EVALUATE, inputs, str(attempt.run.id), trained.sha256, prepared.dataset.sha256, inputs.language
    )
    evaluated = await run_step(attempt, parts, Step.EVALUATE, inputs, addresses, key)
    figures = measured(evaluated.figures)
    if figures.test_words:  # without any there is no rate, and none of 0 %
        parts.metrics.evaluated(figures.wer_base, figures.wer_custom)
    return evaluated


async def publish(  # noqa: PLR0913 - it gathers everything
    attempt: Attempt, parts: Parts, inputs: RunInputs, prepared: Prepared, trained: Made, evaluated: Made
) -> Succeeded:
    """Ask the gate, write the model where it can be used, and say what the one terminal transaction commits."""
    decision = decide(measured(evaluated.figures))
    model_id = str(attempt.run.custom_model_id)
    model = await until_answered(lambda: parts.models.model(model_id), parts.clock, what="read model")
    context = {
        "worker_version": __version__,
        "model_id": attempt.run.custom_model_id,
        "model_name": "" if model is None else model["name"],
        "model_key": "" if model is None else model["key"],
        "inputs": inputs.model_dump(mode="json"),
        "data_report": prepared.report.summary(),
        "training": trained.figures,
        "evaluation": evaluated.figures,
        "gate": decision.gate.value,
        "gate_sentence": decision.sentence,
        "phase_seconds": attempt.phase_seconds,
    }
    addresses: dict[str, Address] = {
        "base": await base_weights(parts, inputs),
        "custom": trained.place,
        "evaluation": evaluated.place,
        "dataset": prepared.place,
        "train": trained.place,
    }
    key = content_key(Step.EXPORT, inputs, str(attempt.run.id), trained.sha256, evaluated.sha256, inputs.language)
    exported = await run_step(attempt, parts, Step.EXPORT, inputs, addresses, key, context=context)
    attempt.staged = True
    figures = evaluated.figures | {
        "training": trained.figures,
        "phase_seconds": {name: round(seconds, 1) for name, seconds in attempt.phase_seconds.items()},
        "gate_sentence": decision.sentence,
    }
    has_report = await parts.storage.size(f"{exported.address}/report.html") is not None
    return Succeeded(
        figures=figures,
        gate=decision.gate,
        version=Version(exported.address, exported.sha256) if decision.gate is Gate.PUBLISHED else None,
        data_report=prepared.report.summary(),
        report_address=f"{exported.address}/report.html" if has_report else None,
    )


def measured(figures: dict[str, Any]) -> Measured:
    """The evaluation's figures as the gate reads them.

    Raises:
        StepFailed: one is missing; names it.
    """
    try:
        test, general = figures["test"], figures["general"]
        if test is None:
            return Measured(0, 0, wer_base=0, wer_custom=0, change_low=0, change_high=0)
        return Measured(
            test_utterances=test["utterances"],
            test_words=test["base"]["words"],
            wer_base=test["base"]["wer"],
            wer_custom=test["custom"]["wer"],
            change_low=test["intervals"]["wer_change"][0],
            change_high=test["intervals"]["wer_change"][1],
            general=_general(general) if general else General() if figures.get("general_set") else None,
        )
    except (KeyError, TypeError) as error:
        sentence = "The evaluation did not give all figures."
        raise StepFailed(FailureClass.BUG, "figures_missing", sentence, repr(error)) from error


def _general(figures: dict[str, Any]) -> General:
    return General(
        utterances=figures["utterances"],
        words=figures["base"]["words"],
        wer_base=figures["base"]["wer"],
        wer_custom=figures["custom"]["wer"],
        change_low=figures["intervals"]["wer_change"][0],
    )
