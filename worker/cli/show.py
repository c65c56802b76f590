"""Answers, for people or for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.names import visible


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case _:
            return str(value)


def as_json(value: object) -> None:
    """One JSON value on standard output."""
    print(visible(json.dumps(value, default=_plain, ensure_ascii=False)))  # escapes of JSON as well


def rows(title: str, found: Sequence[Mapping[str, Any]], columns: Iterable[str], *, json_wanted: bool) -> None:
    """A table for people; all columns of every row for programs."""
    if json_wanted:
        as_json([dict(row) for row in found])
        return
    table = Table(title=f"{title}: {len(found)}", title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in found:
        # As text: a customer's name is no markup, and commands no terminal.
        table.add_row(*(Text("" if row[column] is None else visible(_short(row[column]))) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _short(value: object) -> str:
    if isinstance(value, datetime):
        return value.strftime("%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, dict):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(value)


def visible_lines(text: str) -> str:
    """A text of several lines as it may be shown on a terminal."""
    return "\n".join(map(visible, text.split("\n")))


def said(message: str, *, json_wanted: bool, **facts: object) -> None:
    """One sentence, or its facts."""
    if json_wanted:
        as_json(facts)
    else:
        print(visible_lines(message))


def complain(message: str) -> int:
    """A sentence on standard error; the exit code 1."""
    print(visible_lines(message), file=sys.stderr)
    return 1


def misfit(error: ValidationError) -> int:
    """Say which settings do not fit, and why, without their values; the exit code."""
    for fault in error.errors(include_input=False, include_url=False):
        print(f"WORKER_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}", file=sys.stderr)
    return 2
