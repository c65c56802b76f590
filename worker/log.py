"""Log lines: JSON for machines, identifiers bound by whoever holds them, secrets never in them."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide user and password of every address in a line."""
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = _CREDENTIALS.sub("…@", value)
    return event


def configure_log(level: str = "info", *, for_people: bool = False) -> None:
    """Set up structlog for this process, the libraries' own logging included.

    Args:
        level: the least severe level that is printed.
        for_people: coloured lines instead of JSON.
    """
    renderer: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        without_secrets,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
