"""Log lines: JSON for machines, identifiers bound by whoever holds them, secrets never in them.

A secret is hidden in three ways, each of which takes time in proportion to the text: what the settings hold, wherever
it stands; what stands where addresses have a user and a password; what follows a word like ``password=`` or a
signature's name. Rather too much is hidden than too little.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog
from pydantic import BaseModel, SecretStr

HIDDEN: Final = "…"
_SHORTEST: Final = 8
"""Characters of a setting that is hidden wherever it stands: a shorter one may be any word."""
_WORD: Final = re.compile(r"\S+")
_NAMES: Final = (
    r"(?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig|passw(?:or)?d|passphrase|pwd|(?:\w{0,40}_)?secret"
    r"|(?:access|session|auth|id|refresh)?[_-]?token|(?:api|access|secret|private|account|encryption)[_-]?keys?"
    r"|(?:secret[_-]?)?access[_-]?key(?:[_-]?id)?|(?:proxy-)?authorization"
)
_NAMED: Final = re.compile(
    rf"""(?i)(?<![a-z0-9])((?:{_NAMES})["']?\s{{0,10}}[=:]\s{{0,10}}(?:(?:bearer|basic|digest)\s{{1,10}})?)"""
    r"""("[^"]*"|'[^']*'|[^\s&"',;)}\]]+)"""
)
_NAME: Final = re.compile(rf"(?i)(?:{_NAMES}|\w{{0,40}}_(?:password|token|key))")
_TOKEN: Final = re.compile(r"(?i)\b(bearer\s{1,10}|stk_|whsec_)[\w.~+/=-]{8,}")
_DEEPEST: Final = 20


class Redaction:
    """Hides secrets in texts, and in everything that a log line can hold.

    Args:
        known: secrets that are hidden wherever they stand.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        # The longest first: what holds another one is hidden whole.
        self._known = sorted({one for one in known if len(one) >= _SHORTEST}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """A text without its secrets."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        if "@" in text and "://" in text:
            text = _WORD.sub(_without_user, text)
        text = _TOKEN.sub(rf"\g<1>{HIDDEN}", text)
        return _NAMED.sub(rf"\g<1>{HIDDEN}", text)

    def anything(self, value: object, depth: int = 0) -> object:
        """A value without its secrets, of types that JSON has; whatever else is in it becomes text."""
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, SecretStr) or depth > _DEEPEST:
            return HIDDEN
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return [self.anything(held, depth + 1) for held in value]
        return self.text(str(value) if isinstance(value, BaseException) else repr(value))

    def _mapping(self, mapping: Mapping[Any, object], depth: int) -> dict[str, object]:
        return {
            self.text(str(name)): HIDDEN if _secret(name, held) else self.anything(held, depth + 1)
            for name, held in mapping.items()
        }

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A line without its secrets; what structlog keeps for itself in it stays as it is."""
        own = {name: value for name, value in event.items() if name.startswith("_")}
        return self._mapping({name: value for name, value in event.items() if name not in own}, 0) | own


def _secret(name: object, value: object) -> bool:
    """Whether a value is one by its name; counts, and what is absent, are none."""
    return isinstance(value, str | bytes | Mapping) and _NAME.fullmatch(str(name)) is not None


def _without_user(found: re.Match[str]) -> str:
    """A word without what stands between :// and the last @, whatever characters a password has."""
    word = found[0]
    begin, end = word.find("://"), word.rfind("@")
    return word if begin < 0 or end < begin else f"{word[: begin + 3]}{HIDDEN}{word[end:]}"


def secrets_of(settings: BaseModel) -> set[str]:
    """What must not be seen of some settings: their secrets; of an address, its password, as written and as meant."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, dict):  # options of a library: some are secrets, by their names
            found |= {str(held) for option, held in value.items() if _secret(option, held)}
        if not isinstance(value, SecretStr):
            continue
        secret = value.get_secret_value()
        if "://" not in secret:
            found |= {secret} | _words(secret)
            continue
        try:
            password = urlsplit(secret).password
        except ValueError:
            password = None
        # As the libraries read it, and as people may have meant it.
        inner = secret.partition("://")[2].rpartition("@")[0].partition(":")[2]
        found |= {text for one in (password, inner) if one for text in (one, unquote(one))}
    return found


def _words(secret: str) -> set[str]:
    """The secrets in a secret that holds several: keys in a row, or the values of a JSON object."""
    try:
        held = json.loads(secret)
    except ValueError:
        held = None
    if not isinstance(held, dict):
        return set(secret.replace(",", " ").split())
    values = {value for value in held.values() if isinstance(value, str)}
    return values | {value.rpartition(" ")[2] for value in values}  # "Bearer …"


_REDACTION: list[Redaction] = [Redaction()]


def redacted(text: str) -> str:
    """A text that people see, without the secrets of this process."""
    return _REDACTION[0].text(text)


def configure_log(level: str = "info", *, for_people: bool = False, secrets: Iterable[str] = ()) -> None:
    """Set up structlog for this process, the libraries' own logging included.

    Args:
        level: the least severe level that is printed.
        for_people: coloured lines instead of JSON.
        secrets: hidden wherever they stand.
    """
    _REDACTION[0] = Redaction(secrets)
    renderer: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _REDACTION[0],
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
