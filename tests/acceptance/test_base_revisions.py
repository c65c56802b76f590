"""A base language is one commit of a hub, for as long as nobody asks for another."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.hub import MODEL, NEW, OLD, hub

if TYPE_CHECKING:
    from tests.acceptance.world import World

pytestmark = pytest.mark.trainer


def added(world: World, address: str, *words: str) -> dict[str, str]:
    world.settings |= {"HF_ENDPOINT": address, "HF_HOME": str(world.folder / "hub-cache"), "HF_HUB_DISABLE_XET": "1"}
    world.settings["HF_HUB_OFFLINE"] = "0"
    world.settings["WORKER_TRAINER_PYTHON"] = sys.executable
    done = world.command("base-language-add", "northern", "--weights", MODEL, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_base_language_keeps_its_commit_when_the_name_on_the_hub_means_another(world: World) -> None:
    with hub(main=OLD) as (address, _):
        first = added(world, address)
    with hub(main=NEW) as (address, _):
        again = added(world, address)
        moved = added(world, address, "--revision", "main")
    assert (first["revision"], again["revision"], moved["revision"]) == (OLD, OLD, NEW)
    assert first["version"] == again["version"] != moved["version"]
    record = world.folder / "storage" / f"{moved['weights']}.source.json"
    assert json.loads(record.read_text()) == {"source": MODEL, "revision": NEW}
