"""Named queries: SQL lives in ``sql/queries/*.sql``, one name and one line of purpose each.

Queries that differ in a word or two are written once, the way a shell expands braces: the name
``by_{name,key}_{asc,desc}`` stands for four, and ``{1}`` and ``{2}`` in the text for the alternatives that a name took.
A line ``-- let columns: id, name`` gives ``{columns}`` a text in the queries of its file. All of it comes from the
file: nothing that a caller says ever becomes SQL.
"""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

_HEADING = re.compile(r"^-- name: ([\w{},]+)\n-- \S", re.MULTILINE)
_LET = re.compile(r"^-- let (\w+): (.+)\n", re.MULTILINE)
_ALTERNATIVES = re.compile(r"\{([\w,]+)\}")


@cache
def queries(topic: str) -> dict[str, str]:
    """The queries of ``sql/queries/<topic>.sql`` by name.

    Raises:
        ValueError: a name stands twice.
        FileNotFoundError: no such topic.
    """
    text = files("sql").joinpath("queries", f"{topic}.sql").read_text(encoding="utf-8")
    return read_queries(text, topic)


def read_queries(text: str, topic: str) -> dict[str, str]:
    """The queries in the text of a file, by name, with braces and ``let`` lines expanded.

    Raises:
        ValueError: a name stands twice.
    """
    while let := _LET.search(text):  # each in turn, so that one may use those before it
        text = _LET.sub("", text, count=1).replace(f"{{{let[1]}}}", let[2])
    headings = list(_HEADING.finditer(text))
    named: dict[str, str] = {}
    for heading, following in itertools.zip_longest(headings, headings[1:]):
        body = text[heading.start() : following.start() if following else len(text)].strip()
        for name, query in _expanded(heading[1], body):
            if name in named:
                raise ValueError(f"query {name!r} stands twice in {topic}.sql")
            named[name] = query
    return named


def _expanded(name: str, body: str) -> Iterator[tuple[str, str]]:
    alternatives = [group.split(",") for group in _ALTERNATIVES.findall(name)]
    for chosen in itertools.product(*alternatives):
        one_name = name
        for word in chosen:
            one_name = _ALTERNATIVES.sub(word, one_name, count=1)
        query = body.replace(f"-- name: {name}", f"-- name: {one_name}", 1)
        for number, word in enumerate(chosen, 1):
            query = query.replace(f"{{{number}}}", word)
        yield one_name, query
