"""Trainings that harm the worker they run on, and everybody who shares it."""

from __future__ import annotations

import asyncio

from tests.attack.attacker import Attacker, kind
from tests.attack.kinds.texts import marks


async def _trained(attacker: Attacker, transcript: bytes, suffix: str = ".txt") -> None:
    await attacker.train(await attacker.trainable(transcript, suffix))


@kind("1")
async def training_on_marks(attacker: Attacker) -> None:
    """A run whose transcript of combining marks stops the worker that reads it for longer than a lease."""
    await _trained(attacker, marks(160_000).encode())


@kind("1")
async def training_on_voices(attacker: Attacker) -> None:
    """A run whose captions stop the pattern for speakers."""
    await _trained(attacker, ("WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<v." * 14_000 + "\n").encode(), ".vtt")


@kind("1", slices=12)
async def trainings_that_stop_every_worker(attacker: Attacker) -> None:
    """Three such runs at once and again and again: others' runs lose worker after worker, until their tries are used up."""
    models = attacker.kept.setdefault("poisoned_models", [])
    while len(models) < 3 and attacker.left_s:
        models.append(await attacker.trainable(marks(160_000).encode()))
    while attacker.left_s:
        for model in models:
            await attacker.start(model)
        await asyncio.sleep(min(3.0, attacker.left_s))


@kind("11")
async def training_on_references(attacker: Attacker) -> None:
    """A run with a reference that no integer holds, three times as a mistake of ours."""
    await _trained(attacker, ("1\n00:00:00,000 --> 00:00:01,000\n&#" + "9" * 5_000 + ";\n").encode(), ".srt")


@kind("1")
async def training_on_a_manifest(attacker: Attacker) -> None:
    """A run whose manifest has texts of combining marks, read on the event loop itself."""
    model = await attacker.trainable()
    line = '{"audio_filepath":"talk.wav","text":"' + marks(60_000) + '"}\n'
    await attacker.upload(model, [("list.jsonl", line.encode())], attacker.preparing)
    await attacker.train(model)


@kind("4")
async def recording_that_crashes(attacker: Attacker) -> None:
    """A decoder that dies of a recording."""
    await _trained(attacker, b"please crash")


@kind("4")
async def recording_that_hangs(attacker: Attacker) -> None:
    """A decoder that never ends and is deaf to being asked."""
    await _trained(attacker, b"please hang")


@kind("4")
async def recording_that_eats(attacker: Attacker) -> None:
    """A decoder that takes memory and keeps it."""
    await _trained(attacker, b"please eat")


@kind("4")
async def recording_that_forks(attacker: Attacker) -> None:
    """A decoder that leaves children behind."""
    await _trained(attacker, b"please fork")


@kind("8")
async def recording_that_floods(attacker: Attacker) -> None:
    """A decoder that writes megabytes of log and nonsense for events."""
    await _trained(attacker, b"please flood")


@kind("4")
async def recording_that_spies(attacker: Attacker) -> None:
    """A decoder taken over: looks for the worker's secrets and other customers' files, and tells its customer."""
    await _trained(attacker, b"please spy")


@kind("5")
async def start_and_cancel(attacker: Attacker) -> None:
    """Runs that are asked for and cancelled at once, on three models."""
    models = [await attacker.trainable() for _ in range(3)]

    async def loop(n: int) -> None:
        run = await attacker.start(models[n % 3])
        if run:
            await attacker.owner.ask("POST", f"/custom_models/{models[n % 3]}/runs/{run}/cancel")
        await asyncio.sleep(0.05)

    await attacker.repeated(loop, 30, 3)


@kind("5")
async def delete_while_it_trains(attacker: Attacker) -> None:
    """Models that are deleted under their running trainings."""
    for _ in range(3):
        if not attacker.left_s:
            return
        model = await attacker.trainable()
        await attacker.start(model)
        await asyncio.sleep(min(1.0, attacker.left_s))
        await attacker.owner.ask("DELETE", f"/custom_models/{model}")


@kind("1")
async def waiting_runs_by_the_dozen(attacker: Attacker) -> None:
    """As many waiting runs as one can ask for: others' must not wait behind them."""
    models = attacker.kept.setdefault("waiting_models", [])
    while len(models) < 8 and attacker.left_s:
        models.append(await attacker.trainable())
    for model in models:
        await attacker.start(model)
    await asyncio.sleep(attacker.left_s)
