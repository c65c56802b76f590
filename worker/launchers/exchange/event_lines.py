"""A step's events as the lines that its outpost passes on to the owner."""

from schemas.events import Event, Failure, encode
from schemas.failures import FailureClass


def line_of(event: Event) -> bytes:
    """The event's line; or, where that would be longer than a line may be, the failure that says so.

    A recipe's own line may just fit and ours not: it wrote ``1e15`` where we write ``1000000000000000.0``.
    """
    try:
        return encode(event)
    except ValueError as error:
        return encode(
            Failure(
                failure_class=FailureClass.BUG,
                code="event_too_long",
                message="The training program reported more at once than can be passed on.",
                detail=f"{event.event}: {error}",
            )
        )
