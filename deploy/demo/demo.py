"""The demo: one organization, one custom model, one training run, and what the customer gets for it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.markup import escape

from deploy.demo import object_storage
from deploy.demo.show import (
    before_and_after,
    begin,
    figures,
    glance_at_metrics,
    say,
    watch,
    where_things_are,
)
from deploy.local.program import LocalServiceError, Program
from deploy.local.ray_cluster import local_ray, ray_program
from deploy.local.report import MissingPieceError
from deploy.local.s3_server import S3Server, local_s3
from deploy.local.services import Addresses, LocalServices, given_addresses
from deploy.local.slurm_cluster import local_slurm, slurm_programs

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent / "data"
ORGANIZATION = 1
START_S = 60.0


def main() -> int:
    """Run the demo; 0 when the run ended in SUCCESS."""
    parser = argparse.ArgumentParser(prog="deploy/demo.sh", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--launcher", choices=("local", "ray", "slurm"), default="local")
    parser.add_argument(
        "--exchange",
        choices=("folder", "storage"),
        default="folder",
        help="what a cluster's node shares with the worker: a folder, or an S3 server alone",
    )
    parser.add_argument("--processes", type=int, default=1, help="how many train the model together")
    options = parser.parse_args()
    if options.exchange == "storage" and options.launcher == "local":
        parser.error("--exchange storage is for --launcher ray or slurm")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever ends us, `stop` below runs
    folder = Path(tempfile.mkdtemp(prefix="speech-demo-"))
    folder.chmod(0o711)  # where Postgres must run as another user, that user has to reach its own folder in here
    demo = Demo(folder, options.launcher, options.processes, options.exchange)
    try:
        status = demo.run()
        if options.keep:
            demo.keep()
    except KeyboardInterrupt:
        say("stopped by hand")
        return 130
    except (MissingPieceError, LocalServiceError) as error:
        say(f"the demo cannot go on: {escape(str(error))}")
        return 1
    else:
        return 0 if status == 4 else 1  # noqa: PLR2004 - SUCCESS
    finally:
        demo.stop()


class Demo:
    """Everything that is started here is stopped here."""

    def __init__(self, folder: Path, launcher: str, processes: int, exchange: str) -> None:
        self._folder = folder
        self._launcher, self._processes, self._exchange = launcher, processes, exchange
        self._s3: S3Server | None = None
        self._services: LocalServices | None = None
        self._log = folder / "worker.log"
        self._clusters = contextlib.ExitStack()
        self._worker = Program("worker", self._log)  # on a leash: it cannot outlive us
        self._environment: dict[str, str] = {}

    def run(self) -> int:
        """The story; the run's last `training_status`."""
        begin()
        if self._exchange == "storage":
            say("starting a private S3 server")
            self._s3 = self._clusters.enter_context(local_s3(self._folder / "s3", volumes=120))
        cluster = self._start_cluster()
        addresses = self._start_services()
        self._environment = self._settings(addresses) | cluster
        model = self._prepare_catalogue()
        observe_port = self._start_worker()
        published_at = time.time()
        run_id = self._cli("request-run", model)["run_id"]
        say(f"published training.run.requested for run {run_id}")
        run = asyncio.run(watch(self._environment["WORKER_DATABASE_URL"], run_id, self._worker_alive))
        seconds = round(time.time() - published_at, 1)
        storage = self._folder / "storage"
        if self._s3 is not None:  # its server is stopped with everything else
            object_storage.bring(self._s3, f"runs/{run_id}/{run['attempt']}", storage)
        shown = {}
        if run["status"] == 4:  # noqa: PLR2004 - SUCCESS
            shown = figures(run)
            before_and_after(run)
        else:
            say(f"the run ended with training_status {run['status']}: {run['failure_reason']}\n{run['failure_detail']}")
        glance_at_metrics(f"http://127.0.0.1:{observe_port}/metrics")
        where_things_are(storage, run, self._log)
        result = {"training_status": run["status"], **shown, "launcher": self._launcher, "seconds": seconds}
        result["processes"] = self._processes
        if self._launcher != "local":
            result |= {"exchange": self._exchange, "cluster_jobs": self._cluster_jobs(run_id)}
        print("RESULT " + json.dumps(result), flush=True)
        return int(run["status"])

    # --- the parts -----------------------------------------------------------------------------------------------

    def _start_services(self) -> Addresses:
        given = given_addresses()
        if given is not None:
            say("using the RabbitMQ and Postgres that the environment names")
            return given
        say("starting a private RabbitMQ and Postgres on free loopback ports")
        self._services = LocalServices(self._folder / "services")
        return self._services.start()

    def _start_cluster(self) -> dict[str, str]:
        """A cluster of one node, if trainers shall run on one; what a worker must know of it.

        Raises:
            MissingPieceError: says what is not installed here.
        """
        if self._launcher == "ray":
            say("starting a Ray cluster of one node, in a network of its own")
            reaching, hiding = ([], []) if self._s3 is None else ([self._s3.port], [self._folder])
            ray = self._clusters.enter_context(local_ray(ray_program(), reaching=reaching, hiding=hiding))
            return {"WORKER_RAY_ADDRESS": ray.address}
        if self._launcher == "slurm":
            say("starting a Slurm cluster of one node, on loopback")
            slurm = self._clusters.enter_context(local_slurm(slurm_programs()))
            return {"SLURM_CONF": slurm.configuration}
        return {}

    def _cluster_jobs(self, run_id: str) -> list[str]:
        """The jobs that the run's steps were: attempt, step, how many times it was started."""
        if self._s3 is None:
            return sorted(folder.name for folder in (self._folder / "steps" / run_id).iterdir())
        return object_storage.folders_below(self._s3, f"steps/{run_id}")

    def _settings(self, addresses: Addresses) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
        shared = {"WORKER_STORAGE_URL": f"file://{self._folder}/storage", "WORKER_EXCHANGE": str(self._folder)}
        if self._s3 is not None:
            shared = object_storage.settings(self._s3) | {"WORKER_EXCHANGE_KIND": "storage"}
        return (
            kept
            | shared
            | {
                "PYTHONPATH": str(ROOT),
                "WORKER_AMQP_URL": addresses.amqp_url,
                "WORKER_DATABASE_URL": addresses.database_url,
                "WORKER_SCRATCH": str(self._folder / "scratch"),
                "WORKER_CACHE": str(self._folder / "cache"),
                "WORKER_LAUNCHER": self._launcher,
                "WORKER_TRAINER_PROCESSES": str(self._processes),
                "WORKER_OBSERVE_PORT": "0",
                "WORKER_POLL_S": "1",
            }
        )

    def _prepare_catalogue(self) -> str:
        self._cli("migrate")
        say("base language: Whisper tiny.en (37.8 M parameters), weights brought into storage")
        self._cli("base-language-add", "en", "--name", "English", "--weights", "offline:whisper-tiny.en")
        self._cli("organization-add", "Northside Cardiology", "--id", str(ORGANIZATION))
        key = self._cli("model-add", "Cardiology dictation", "--organization", str(ORGANIZATION), "--base", "en")["key"]
        added = 0
        for manifest in ("train.jsonl", "test.jsonl", "test_unseen_voices.jsonl"):
            added += self._cli("import", str(DATA / manifest), "--model", key)["added"]
        say(f"custom model {key}: {added} files imported")
        return str(key)

    def _cli(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "worker", words[0], "--json", *words[1:]],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"demo: `python -m worker {' '.join(words)}` failed")
        lines = done.stdout.decode().splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def _start_worker(self) -> int:
        say("starting a worker")
        self._worker.start([sys.executable, "-m", "worker", "run"], self._environment)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._worker_alive():
            for line in self._log.read_text().splitlines():
                if '"worker started"' in line:
                    port = int(json.loads(line)["observe_port"])
                    if _ready(port):
                        return port
            time.sleep(0.1)
        raise SystemExit(f"demo: the worker did not start; its log:\n{self._log.read_text()[-3000:]}")

    def _worker_alive(self) -> bool:
        return self._worker.running

    def keep(self) -> None:
        """Leave everything running until Ctrl-C."""
        settings = "\n".join(
            f"  export {name}='{value}'" for name, value in self._environment.items() if name.startswith("WORKER_")
        )
        say("everything is running; press Ctrl-C here to stop it. In another terminal:")
        print(f"{settings}\n  export PYTHONPATH={ROOT}\n  {sys.executable} -m worker runs")
        try:
            while self._worker_alive():
                time.sleep(1)
        except KeyboardInterrupt:
            say("stopping")

    def stop(self) -> None:
        """Stop what was started; the models and logs stay."""
        self._worker.stop()
        try:
            self._clusters.close()
        finally:
            if self._services is not None:
                self._services.stop()
                self._services.postgres.remove()
        for spent in ("services", "scratch", "cache", "steps", "s3"):  # model, report and logs stay
            shutil.rmtree(self._folder / spent, ignore_errors=True)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)  # noqa: PLR2004
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
