"""Named queries: SQL lives in ``sql/queries/*.sql``, one name and one line of purpose each."""

import re
from functools import cache
from importlib.resources import files

_HEADING = re.compile(r"^-- name: (\w+)\n-- \S", re.MULTILINE)


@cache
def queries(topic: str) -> dict[str, str]:
    """The queries of ``sql/queries/<topic>.sql`` by name.

    Raises:
        ValueError: a name stands twice.
        FileNotFoundError: no such topic.
    """
    text = files("sql").joinpath("queries", f"{topic}.sql").read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    found: dict[str, str] = {}
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        name = heading.group(1)
        if name in found:
            raise ValueError(f"query {name!r} stands twice in {topic}.sql")
        found[name] = text[heading.start() : following.start() if following else len(text)].strip()
    return found
