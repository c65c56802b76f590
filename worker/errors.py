"""Every error of ours, in one drawn tree. Foreign errors are translated where they enter.

WorkerError
├── DatabaseAway      the database does not answer: wait and try again, nothing is lost
├── DatabaseRefused   the database says no: a constraint, a missing table; trying again does not help
├── SchemaTooNew      the schema asks for newer code than this
├── SchemaNotReady    migrations are missing or were edited
├── BrokerAway        the broker does not answer
├── BrokerRefused     the broker says no: credentials, virtual host, permissions; only people mend it
├── TopologyDiffers   a broker object exists with other arguments
├── StorageAway       object storage does not answer
│   ├── StorageFull      no room left
│   └── StorageRefused   it answers no: credentials, rights, a bucket that is not there
├── NotStored         no object under that key
│   └── Spoiled          there is one, but its bytes are not those that were stored
├── TooLarge          more bytes than the reader or the writer allows
├── LauncherUnavailable   no device, or a cluster that does not answer: the run waits, see launchers/interface.py
├── IsolationUnavailable  trainers must be kept apart, and this host cannot, see confinement.py
├── RunLost           another attempt, or a cancel, owns the run now: stop, write nothing more
└── StepFailed        a recipe's step ended badly, with a class
"""

from schemas.failures import FailureClass


class WorkerError(Exception):
    """The root."""


class DatabaseAway(WorkerError):  # noqa: N818 - a state of the world, as people say it
    """The database does not answer, or lost the connection under a statement whose fate is unknown."""


class DatabaseRefused(WorkerError):  # noqa: N818
    """The database answered no."""


class Busy(WorkerError):  # noqa: N818
    """Somebody else changes this at the moment: let go of everything and try again."""


class SchemaTooNew(WorkerError):  # noqa: N818
    """A migration on this schema says that this code is too old for it."""


class SchemaNotReady(WorkerError):  # noqa: N818
    """Migrations are missing, or an applied one was edited."""


class BrokerAway(WorkerError):  # noqa: N818
    """The broker does not answer."""


class BrokerRefused(WorkerError):  # noqa: N818
    """The broker answered no: wrong credentials, no such virtual host, a missing permission."""


class TopologyDiffers(WorkerError):  # noqa: N818
    """A broker object exists with other arguments than ours."""


class StorageAway(WorkerError):  # noqa: N818
    """Object storage does not answer."""


class StorageFull(StorageAway):
    """No room is left where objects are kept: somebody has to make some."""


class StorageRefused(StorageAway):
    """Object storage answers no; trying again without a change does not help."""


class NotStored(WorkerError):  # noqa: N818
    """Nothing is stored under that key."""


class Spoiled(NotStored):
    """What is stored does not have the digest it should have."""


class TooLarge(WorkerError):  # noqa: N818
    """More bytes than the limit that was set."""


class RunLost(WorkerError):  # noqa: N818
    """The run is not ours any more."""


class StepFailed(WorkerError):  # noqa: N818
    """A step of an attempt failed; the class decides what follows.

    Attributes:
        failure_class: which kind of failure.
        code: which one of that kind; documented in the runbook.
        reason: a sentence the customer can read.
        detail: for the operator.
    """

    def __init__(self, failure_class: FailureClass, code: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{failure_class.value}/{code}: {reason}")
        self.failure_class = failure_class
        self.code = code
        self.reason = reason
        self.detail = detail
