"""Make `custom-models.ts` from `schemas/openapi.json`: types, a check of every field at run time, one method a call.

    python deploy/client/generate.py

A test keeps the file current, compiles it with `tsc --strict` and runs it against a live API.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OPENAPI = HERE.parents[1] / "schemas" / "openapi.json"
CLIENT = HERE / "custom-models.ts"
_HEAD = """// Made by deploy/client/generate.py from schemas/openapi.json; do not edit.
import { ApiProblem, check, type Shape } from "./runtime.js";
export { ApiProblem, WrongShape } from "./runtime.js";

"""


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def type_of(schema: dict[str, Any]) -> str:  # noqa: PLR0911 - one for each kind of schema
    """A schema as a TypeScript type."""
    if "$ref" in schema:
        return _name(schema["$ref"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(type_of(one) for one in schema["anyOf"])
    match schema.get("type"):
        case "array":
            inner = type_of(schema["items"])
            return f"({inner})[]" if " | " in inner else f"{inner}[]"
        case "integer" | "number":
            return "number"
        case "string" | "boolean" | "null":
            return str(schema["type"])
        case "object":
            return "Record<string, unknown>"
    return "unknown"


def shape_of(schema: dict[str, Any]) -> str:  # noqa: PLR0911 - one for each kind of schema
    """A schema as what `check` compares a value with."""
    if "$ref" in schema:
        return f'{{ kind: "ref", name: "{_name(schema["$ref"])}" }}'
    if "const" in schema:
        return f'{{ kind: "one", values: [{json.dumps(schema["const"])}] }}'
    if "enum" in schema:
        return f'{{ kind: "one", values: {json.dumps(schema["enum"])} }}'
    if "anyOf" in schema:
        return f'{{ kind: "any", of: [{", ".join(shape_of(one) for one in schema["anyOf"])}] }}'
    match schema.get("type"):
        case "array":
            return f'{{ kind: "list", of: {shape_of(schema["items"])} }}'
        case "string" if schema.get("format") == "date-time":
            return '{ kind: "moment" }'
        case "integer" | "number" | "string" | "boolean" | "null" as kind:
            return f'{{ kind: "{kind}" }}'
        case "object":
            return '{ kind: "map" }'
    return '{ kind: "unknown" }'


def _interface(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = [f"/** {schema['description']} */"] if "description" in schema else []
    lines.append(f"export interface {name} {{")
    for field, inner in schema["properties"].items():
        if "description" in inner:
            lines.append(f"  /** {inner['description']} */")
        lines.append(f"  {field}{'' if field in required else '?'}: {type_of(inner)};")
    return "\n".join([*lines, "}\n"])


def _shape(name: str, schema: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"  {name}: {shape_of(schema)},"
    fields = ", ".join(f"{json.dumps(field)}: {shape_of(inner)}" for field, inner in schema["properties"].items())
    optional = sorted(set(schema["properties"]) - set(schema.get("required", ())))
    return f'  {name}: {{ kind: "object", optional: {json.dumps(optional)}, fields: {{ {fields} }} }},'


def _method(path: str, verb: str, operation: dict[str, Any]) -> str:
    parameters = operation["parameters"]
    places = {place: [one for one in parameters if one["in"] == place] for place in ("path", "query", "header")}
    arguments = [f"{one['name']}: {type_of(one['schema'])}" for one in places["path"]]
    body = operation.get("requestBody")
    media = next(iter(body["content"])) if body else None
    taken = {"multipart/form-data": "FormData", "application/octet-stream": "Blob"}
    sends = body is not None and body["required"]
    if sends and media is not None:
        arguments.append(f"body: {taken.get(media) or type_of(body['content'][media]['schema'])}")
    options = [
        f"{json.dumps(one['name'])}{'' if one.get('required') else '?'}: {type_of(one['schema'])}"
        for one in places["query"] + places["header"]
        if one["name"] != "If-None-Match"
    ]
    needed = any(one.get("required") for one in places["query"] + places["header"])
    if options:
        arguments.append(f"options: {{ {'; '.join(options)} }}{'' if needed else ' = {}'}")
    status, good = next((status, good) for status, good in operation["responses"].items() if status.startswith("2"))
    content = good.get("content", {})
    schema = content.get("application/json", {}).get("schema")
    result = type_of(schema) if schema else ("string" if content else "undefined")
    name = re.sub(r"_(\w)", lambda found: found.group(1).upper(), operation["operationId"])
    query = json.dumps([one["name"] for one in places["query"]])
    call = f"{json.dumps(verb.upper())}, `{re.sub('{', '${', path)}`, {status}"
    sent = f"{{ body: {'body' if sends else 'undefined'}, options: {'options' if options else '{}'}, query: {query} }}"
    lines = [
        f"  /** {operation['summary']}. */",
        f"  async {name}({', '.join(arguments)}): Promise<{result}> {{",
        f"    {'const answer = ' if content else ''}await this.send({call}, {sent});",
    ]
    if schema:
        lines.append(f"    return check<{result}>(await answer.json(), {json.dumps(result)}, shapes);")
    elif content:
        lines.append("    return answer.text();")
    else:
        lines.append("    return undefined;")
    return "\n".join([*lines, "  }\n"])


_CLASS = """export class CustomModelsClient {
  constructor(private readonly url: string, private readonly key: string) {}

  private async send(method: string, path: string, status: number, sent: {
    body: unknown; options: Record<string, unknown>; query: readonly string[];
  }): Promise<Response> {
    const address = new URL(path, this.url);
    const headers: Record<string, string> = { Authorization: `Bearer ${this.key}` };
    for (const [name, value] of Object.entries(sent.options)) {
      if (value === undefined) continue;
      if (sent.query.includes(name)) address.searchParams.set(name, String(value));
      else headers[name] = String(value);
    }
    const raw = sent.body instanceof FormData || sent.body instanceof Blob;
    if (sent.body !== undefined && !raw) headers["Content-Type"] = "application/json";
    const body = sent.body === undefined ? null : raw ? (sent.body as FormData | Blob) : JSON.stringify(sent.body);
    const answer = await fetch(address, { method, headers, body });
    if (answer.status !== status && !(status === 200 && answer.status === 206)) {
      throw new ApiProblem(check<Problem>(await answer.json(), "Problem", shapes));
    }
    return answer;
  }

"""


def generated() -> str:
    """The whole file."""
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    schemas: dict[str, dict[str, Any]] = document["components"]["schemas"]
    parts = [_HEAD]
    for name, schema in schemas.items():
        if "properties" in schema:
            parts.append(_interface(name, schema) + "\n")
        else:
            parts.append(f"export type {name} = {type_of(schema)};\n\n")
    parts.append("const shapes: Record<string, Shape> = {\n")
    parts += [_shape(name, schema) + "\n" for name, schema in schemas.items()]
    parts += ["};\n\n", _CLASS]
    methods = [
        _method(path, verb, operation)
        for path, operations in document["paths"].items()
        for verb, operation in operations.items()
        if "text/event-stream" not in operation["responses"].get("200", {}).get("content", {})
    ]
    return "".join(parts) + "\n".join(methods) + "}\n"


if __name__ == "__main__":
    CLIENT.write_text(generated(), encoding="utf-8")
