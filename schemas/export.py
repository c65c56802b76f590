"""Writes the wire formats as JSON Schema and AsyncAPI, for producers and consumers in any language.

``python -m schemas.export`` writes them beside this file; a test compares, so that they are always current.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel  # noqa: TC002 - read at run time by whoever reads annotations

from schemas import messages
from schemas.events import EVENT
from schemas.recipes import recipes
from schemas.steps import ManifestRow, StepSpec, Verdict

FOLDER: Final = Path(__file__).parent
_ADDRESS: Final = "https://json-schema.org/draft/2020-12/schema"


def exported() -> dict[str, str]:
    """File name to content of every exported schema but OpenAPI, which the API exports."""
    models: dict[str, type[BaseModel]] = {
        "run_requested": messages.RunRequested,
        "run_moved": messages.RunMoved,
        "step_spec": StepSpec,
        "manifest_row": ManifestRow,
        "verdict": Verdict,
    }
    models |= {f"recipe_{name}_parameters": recipe.parameters for name, recipe in recipes().items()}
    found = {
        f"{name}.schema.json": {"$schema": _ADDRESS, **model.model_json_schema(by_alias=True)}
        for name, model in models.items()
    }
    found["trainer_event.schema.json"] = {"$schema": _ADDRESS, **EVENT.json_schema(by_alias=True)}
    found["asyncapi.json"] = asyncapi()
    return {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in found.items()}


def asyncapi() -> dict[str, Any]:
    """What travels over the broker, as AsyncAPI 3.0."""
    moved = {
        name: {
            "name": f"training.run.{name}.v1",
            "contentType": "application/json",
            "payload": {"$ref": "run_moved.schema.json"},
        }
        for name in messages.EVENT_NAMES.values()
    }
    requested = {
        "name": messages.REQUEST_TYPE,
        "contentType": "application/json",
        "summary": "Persistent; message_id is the run's id; published mandatory and confirmed.",
        "payload": {"$ref": "run_requested.schema.json"},
    }
    exchange = {"bindings": {"amqp": {"is": "routingKey", "exchange": {"name": messages.EXCHANGE, "type": "topic"}}}}
    channels = {"requests": {"address": messages.REQUEST_ROUTING_KEY, "messages": {"requested": requested}, **exchange}}
    channels |= {
        name: {"address": f"training.run.{name}", "messages": {name: message}, **exchange}
        for name, message in moved.items()
    }
    operations = {"takeRequests": {"action": "receive", "channel": {"$ref": "#/channels/requests"}}}
    operations |= {f"tell_{name}": {"action": "send", "channel": {"$ref": f"#/channels/{name}"}} for name in moved}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Training runs of custom speech models", "version": "1"},
        "channels": channels,
        "operations": operations,
    }


if __name__ == "__main__":
    for file_name, text in exported().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
