"""The closed list of routes: what a path is called in log lines, metrics and spans, whatever a stranger sent."""

from functools import lru_cache
from typing import Final

from worker.api.endpoints import ENDPOINTS

PREFIX: Final = "/api/v3"
OTHER: Final = "other"
"""A path that is no route."""
CONSOLE: Final = "/console/{file}"
_OPENAPI: Final = f"{PREFIX}/openapi.json"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ROUTES: Final = (*dict.fromkeys(PREFIX + endpoint.path for endpoint in ENDPOINTS), _OPENAPI, "/", CONSOLE, OTHER)
_LONGEST: Final = 400
"""Characters of the longest path that can be a route, trailing slashes included."""

_BY_LENGTH: Final[dict[int, list[tuple[str, list[str]]]]] = {}
for _route in ROUTES:
    _parts = _route.split("/")
    _BY_LENGTH.setdefault(len(_parts), []).append((_route, _parts))


def route_of(path: str) -> str:
    """The route's template that a path belongs to; ``other`` where there is none."""
    return OTHER if len(path) > _LONGEST else _route_of(path)


@lru_cache(maxsize=8192)
def _route_of(path: str) -> str:
    if path.startswith("/console/"):
        return CONSOLE
    parts = path.split("/") if path == "/" else path.rstrip("/").split("/")
    for route, wanted in _BY_LENGTH.get(len(parts), ()):
        if all(want == part or (want.startswith("{") and part) for want, part in zip(wanted, parts, strict=True)):
            return route
    return OTHER


def method_of(method: str) -> str:
    """The method, where it is one that any route knows; else ``other``."""
    return method if method in METHODS else OTHER
