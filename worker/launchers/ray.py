"""Steps as Ray jobs, over the Jobs API's HTTP: the worker needs no Ray installed, only the cluster's address."""

import asyncio
import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from worker.launchers.cluster import Presence, Sighting
from worker.launchers.interface import LauncherUnavailable

_ALIVE: Final = ("PENDING", "RUNNING")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where the cluster is and what a step asks of it."""

    address: str
    """The dashboard's, for instance ``http://ray-head:8265``."""
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources, by the names the cluster gave them."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For clusters that want authentication; they go to the dashboard only."""
    timeout_s: float = 30.0


class RayCluster:
    """See ``worker.launchers.cluster.Cluster``."""

    def __init__(self, options: RayOptions) -> None:
        if not options.address.startswith(("http://", "https://")):
            raise ValueError(f"a Ray dashboard's address begins with http:// or https://, not {options.address!r}")
        self._options = options

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        """A Ray job whose submission id is the name."""
        # into the outpost's own folder where there is one: Ray's copy lies where other users of the cluster look
        redirected = "" if output is None else f" >>{shlex.quote(str(output))} 2>&1"
        order = {
            "submission_id": name,
            "entrypoint": command + redirected,
            "entrypoint_num_cpus": self._options.cpus,
            "entrypoint_num_gpus": self._options.gpus,
            "entrypoint_resources": dict(self._options.resources),
        }
        await self._call("POST", "/api/jobs/", order)

    async def sightings(self) -> Mapping[str, Sighting]:
        """All jobs of the cluster that were submitted under a name."""
        return {
            found["submission_id"]: Sighting(
                Presence.ALIVE if found["status"] in _ALIVE else Presence.GONE,
                f"{found['status']}: {found.get('message') or ''}",
            )
            for found in await self._call("GET", "/api/jobs/")
            if found.get("submission_id")
        }

    async def cancel(self, name: str) -> None:
        """Ray sends SIGTERM, and SIGKILL three seconds later."""
        await self._call("POST", f"/api/jobs/{name}/stop", {})

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return await asyncio.to_thread(self._call_blocking, method, path, body)

    def _call_blocking(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._options.address.rstrip("/") + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json", **self._options.headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._options.timeout_s) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND and path.endswith("/stop"):
                    return None  # the cluster does not know it: nothing to cancel
                detail = error.read(2_000).decode(errors="replace")
            raise LauncherUnavailable("cluster_refused", f"{error.code}: {detail}") from error
        except (OSError, ValueError) as error:
            raise LauncherUnavailable("cluster_unreachable", str(error)) from error
