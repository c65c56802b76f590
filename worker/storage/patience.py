"""A remote storage's errors, in our words, and how long they are borne."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from obstore import exceptions as foreign

from worker.errors import NotStored, StorageAway, StorageRefused, WorkerError

Result = TypeVar("Result")

_FIRST_DELAY_S: Final = 0.2
_LONGEST_DELAY_S: Final = 5.0
_REFUSED: Final = (
    foreign.PermissionDeniedError,
    foreign.UnauthenticatedError,
    foreign.NotSupportedError,
    foreign.UnknownConfigurationKeyError,
)
# 408 and 429 ask for patience, 409 is another writer at the same moment; any other 4xx stays.
_CLIENT_ERROR: Final = re.compile(r"status code: 4(?!08|09|29)\d\d")

_SYSTEM_ERROR: Final = re.compile(r'message: "([^"]{1,200})"')


def in_our_words(error: Exception) -> WorkerError:
    """The error of ours that says what a foreign one means."""
    whole = str(error)
    told, _, cause = whole.partition("\n\nDebug source")
    told = told[:1000]
    if isinstance(error, FileNotFoundError):
        return StorageRefused(told) if "NoSuchBucket" in whole else NotStored(told)
    if isinstance(error, _REFUSED) or _CLIENT_ERROR.search(told):
        return StorageRefused(told)
    if system := _SYSTEM_ERROR.search(cause):
        told = f"{told} ({system[1]})"
    if "InvalidCertificate" in cause:
        return StorageRefused(f"{told} (its certificate is not trusted here: set the storage's CA file)")
    return StorageAway(told)


async def patiently(act: Callable[[], Awaitable[Result]], patience_s: float) -> Result:
    """Do something that may be repeated, until it succeeds or `patience_s` are over.

    Raises:
        NotStored: there is no such object.
        StorageRefused: trying again would not help.
        StorageAway: patience ran out.
        obstore.exceptions.AlreadyExistsError: a conditional write found another's object.
    """
    deadline, delay_s = time.monotonic() + patience_s, _FIRST_DELAY_S
    while True:
        try:
            return await act()
        except (foreign.AlreadyExistsError, foreign.PreconditionError):
            raise
        except (foreign.BaseError, FileNotFoundError, OSError) as error:
            ours = in_our_words(error)
            passes = isinstance(ours, StorageAway) and not isinstance(ours, StorageRefused)
            if not passes or time.monotonic() + delay_s > deadline:
                raise ours from error
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, protects nothing
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
