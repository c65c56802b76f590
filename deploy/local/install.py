"""What `setup.sh` runs with the machine's own Python: says what it costs, checks, makes what is missing.

Only the standard library. Standard output is the path of the Python to use; everything else goes to standard
error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.local.cache import cache_root
from deploy.local.debs import has_apt, install_rabbitmq, rabbitmq_folder
from deploy.local.report import MissingPieceError, say
from deploy.local.venv import Venv

ROOT = Path(__file__).resolve().parents[2]
RABBITMQ_MB = (32, 120)  # download, disk while unpacking
BASE_MB = (70, 300)
TRAINER_MB = (420, 1500)  # with the CPU build of PyTorch


@dataclass(frozen=True)
class Piece:
    """Something to have, and what it costs when it is not there yet (megabytes)."""

    name: str
    present: bool
    download_mb: int
    disk_mb: int


def own_services_given() -> bool:
    """Whether the environment names a broker and a database to use instead of private ones."""
    return bool(os.environ.get("WORKER_AMQP_URL") and os.environ.get("WORKER_DATABASE_URL"))


def has_docker() -> bool:
    """Whether a Docker engine answers here (the client alone is not enough)."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def check_broker_road() -> str:
    """How RabbitMQ will be had: given, apt or docker.

    Raises:
        MissingPieceError: not at all.
    """
    if own_services_given():
        return "given"
    if has_apt():
        return "apt"
    if has_docker():
        return "docker"
    raise MissingPieceError(
        "no RabbitMQ to be had: no apt-get (Debian, Ubuntu), no Docker engine running, no address given."
        "\nWhat to do: start Docker, or set WORKER_AMQP_URL and WORKER_DATABASE_URL to services of your own."
    )


def check_disk(pieces: list[Piece]) -> None:
    """Refuse to begin what cannot end.

    Raises:
        MissingPieceError: the cache's disk is too full.
    """
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(piece.disk_mb for piece in pieces if not piece.present)
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < needed:
        raise MissingPieceError(
            f"{needed:,} MB of disk are needed in {folder}, and {free:,} MB are free.\n"
            "What to do: free some, or name another folder in SPEECH_WORKER_CACHE."
        )


def announce(pieces: list[Piece]) -> None:
    """Say what is there, what will be downloaded and how much disk it takes."""
    missing = [piece for piece in pieces if not piece.present]
    say(f"set-up: kept in {cache_root()}")
    for piece in pieces:
        cost = "there already" if piece.present else f"download {piece.download_mb} MB, disk {piece.disk_mb} MB"
        say(f"  {piece.name}: {cost}")
    if missing:
        download, disk = sum(p.download_mb for p in missing), sum(p.disk_mb for p in missing)
        say(f"  together: about {download:,} MB to download (less what pip has kept), {disk:,} MB of disk")


def install(extras: list[str]) -> Path:
    """Have everything; returns the Python of the virtual environment."""
    began = time.monotonic()
    broker = check_broker_road()
    venv = Venv.for_project(ROOT, extras)
    trainer = "trainer" in extras
    pieces = [
        Piece(
            f"Python packages ({', '.join(['core', *extras])})",
            venv.complete,
            BASE_MB[0] + trainer * TRAINER_MB[0],
            BASE_MB[1] + trainer * TRAINER_MB[1],
        )
    ]
    if broker == "apt":
        pieces.append(Piece("RabbitMQ and Erlang", rabbitmq_folder().exists(), *RABBITMQ_MB))
    announce(pieces)
    if trainer and not venv.complete and sys.version_info >= (3, 12):
        say(
            "  Python 3.12 and newer: newer numpy and av than on 3.11, and the CPU build of PyTorch only from PyTorch's"
        )
        say("  own index; where that cannot be reached, the plain build with CUDA is taken (about 3 GB)")
    check_disk(pieces)
    if broker == "apt":
        install_rabbitmq()
    venv.make()
    say(f"set-up: ready after {time.monotonic() - began:.0f} s")
    return venv.python


def main() -> int:
    """Command line: the extras to install."""
    parser = argparse.ArgumentParser(prog="deploy/local/setup.sh", description=__doc__)
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml: trainer api s3 ray otel dev")
    try:
        print(install(sorted(set(parser.parse_args().extras))))
    except MissingPieceError as error:
        say(f"set-up: {error}")
        return 1
    except KeyboardInterrupt:
        say("set-up: interrupted; nothing half-made is used by the next run")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
