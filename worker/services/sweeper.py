"""What killed workers left where steps run: processes that nobody watches, folders that nobody will read."""

import structlog

from worker.clock import Clock
from worker.errors import WorkerError
from worker.launchers.interface import Launcher

_log = structlog.get_logger(__name__)


async def sweep_now_and_then(launcher: Launcher, every_s: float, clock: Clock) -> None:
    """Sweep at once, for the worker before us may have been killed, and then now and then until cancelled."""
    while True:
        try:
            cleared = await launcher.sweep()
        except (WorkerError, OSError) as error:
            _log.warning("launcher not swept", error=str(error))
        else:
            if cleared:
                _log.info("launcher swept", cleared=cleared)
        await clock.sleep(every_s * (0.5 + clock.random()))
