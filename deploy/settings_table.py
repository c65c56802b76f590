"""Writes ``deploy/env.example`` from the settings themselves: ``python -m deploy.settings_table``. A test compares."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from worker.api.settings import ApiSettings
from worker.settings import Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

TARGET = Path(__file__).parent / "env.example"
_HEAD = """\
# Every setting, with its default. Made by `python -m deploy.settings_table` from worker/settings.py and
# worker/api/settings.py; a test compares. Uncomment what you change.
#
# Secrets (marked so) are better given as files: /run/secrets/worker_database_url holds WORKER_DATABASE_URL.
# Numbers ending in _S are seconds, in _BYTES bytes. An unknown name is ignored, a value that does not fit stops the
# start and is named.
"""
# What the machine decides: the example says so instead of showing where it happened to be made.
_DECIDED_ELSEWHERE = {"trainer_python": ("the interpreter that runs the worker", "/opt/trainer/bin/python")}


def render() -> str:
    """The whole file."""
    parts = [_HEAD]
    shared = set(Settings.model_fields)
    for title, model, skipped in (
        ("the worker (and, where they share one, the API)", Settings, set()),
        ("the API", ApiSettings, shared),
    ):
        parts.append(f"\n# ---- {title}\n")
        parts += [_entry(model, name, field) for name, field in model.model_fields.items() if name not in skipped]
    return "".join(parts)


def _entry(model: type[BaseSettings], name: str, field: FieldInfo) -> str:
    variable = f"{model.model_config['env_prefix']}{name.upper()}"
    secret = field.annotation is SecretStr
    value = field.get_default(call_default_factory=True)
    value = value.get_secret_value() if secret else value
    told = field.description or ""
    if name in _DECIDED_ELSEWHERE:
        default, value = _DECIDED_ELSEWHERE[name]
        told = f"{told}; default: {default}"
    if secret:
        told = f"{told} (secret)"
    return f"\n# {told}\n#{variable}={_plain(value)}\n"


def _plain(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return json.dumps(value)
        case None:
            return ""
        case float() if value == int(value):
            return str(int(value))
        case Path():
            return str(value).replace(tempfile.gettempdir(), "/tmp", 1)  # noqa: S108 - shown, not used
        case _:
            return str(value)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
