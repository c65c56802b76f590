"""Debian packages without root: a private apt state, `apt-get download`, unpack. Signatures are checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from deploy.local.cache import cache_root, digest, locked, made_whole
from deploy.local.report import MissingPieceError, say

RABBITMQ = "rabbitmq-server"
# What a package is made from: the release's own build of it. A new release or processor makes a new folder.
RELEASE = Path("/etc/os-release")


def has_apt() -> bool:
    """Whether this machine can download and unpack Debian packages."""
    return bool(shutil.which("apt-get") and shutil.which("apt-cache") and shutil.which("dpkg-deb"))


def _release() -> str:
    fields = dict(line.split("=", 1) for line in RELEASE.read_text().splitlines() if "=" in line)
    return f"{fields.get('ID', 'linux')}{fields.get('VERSION_ID', '')}-{os.uname().machine}".replace('"', "")


def _apt(state: Path, program: str, *arguments: str, cwd: Path | None = None) -> str:
    options = [
        f"Dir::State={state}/state",
        "Dir::State::status=/var/lib/dpkg/status",
        f"Dir::Cache={state}/cache",
        "APT::Sandbox::User=",  # apt must not try to become another user
        "Acquire::Retries=2",
        "Acquire::http::Timeout=30",
        "Acquire::https::Timeout=30",
    ]
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    command = [program, *(word for option in options for word in ("-o", option)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise MissingPieceError(
            f"`{program} {' '.join(arguments[:3])} …` failed:\n{said}\n"
            "What to do: check the network (and http_proxy) and the package sources in /etc/apt; start again."
        )
    return done.stdout


def _update(state: Path) -> None:
    try:
        _apt(state, "apt-get", "-qq", "update", "-o", "APT::Update::Error-Mode=any")
    except MissingPieceError as error:
        # One broken third-party source fails the update; the download below decides whether it mattered.
        print(f"  note: apt could not read every package source: {str(error).splitlines()[1][:120]}", flush=True)


def download(state: Path, packages: list[str], into: Path) -> list[Path]:
    """Download these packages, and nothing else, into a folder; returns the files."""
    into.mkdir(parents=True, exist_ok=True)
    _apt(state, "apt-get", "-qq", "download", *packages, cwd=into)
    return sorted(into.glob("*.deb"))


def unpack(debs: list[Path], root: Path) -> None:
    """Lay the packages' files under `root`; no maintainer script runs."""
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)


def _with_erlang(state: Path) -> list[str]:
    """RabbitMQ and the Erlang packages it needs by this release's own word."""
    excluded = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    switches = [f"--no-{kind}" for kind in excluded]
    try:
        said = _apt(state, "apt-cache", "depends", "--recurse", *switches, RABBITMQ)
    except MissingPieceError as error:
        raise MissingPieceError(
            f"apt finds no package {RABBITMQ}. What to do: check the network (http_proxy); enable the section main "
            "(Ubuntu: universe) in /etc/apt; or name your own services in WORKER_AMQP_URL and WORKER_DATABASE_URL."
        ) from error
    return sorted({line for line in said.splitlines() if re.match(r"(erlang-|rabbitmq-server$)", line)})


def rabbitmq_folder() -> Path:
    """Where this release's RabbitMQ lies once it has been unpacked."""
    return cache_root() / "rabbitmq" / f"{_release()}-{digest('1', _release())}"


def _point_erlang_home(made: Path, final: Path) -> None:
    """Erlang's start scripts carry the folder they were packaged for; give them the one they will live in."""
    for script in (made / "usr/lib/erlang").rglob("bin/*"):
        if script.name in {"erl", "start"}:
            script.write_text(script.read_text().replace("/usr/lib/erlang", f"{final}/usr/lib/erlang"))


def install_rabbitmq() -> Path:
    """RabbitMQ with its Erlang, downloaded once (32 MB, 54 MB unpacked); returns the folder."""
    final = rabbitmq_folder()

    def make(part: Path) -> None:
        say("  downloading RabbitMQ and Erlang (32 MB, 54 MB unpacked) …")
        state = part / "apt"
        _update(state)
        debs = download(state, _with_erlang(state), part / "debs")
        unpack(debs, part)
        _point_erlang_home(part, final)
        for done in ("apt", "debs", "usr/share"):
            shutil.rmtree(part / done)

    with locked("rabbitmq"):
        return made_whole(final, make)


def install_pip_wheel() -> Path:
    """The pip wheel that Debian ships for its own venv module (3 MB), for a Python without `ensurepip`."""
    final = cache_root() / "pip-wheel" / _release()

    def make(part: Path) -> None:
        say("  downloading pip (python3-pip-whl, 3 MB) …")
        state = part / "apt"
        _update(state)
        unpack(download(state, ["python3-pip-whl"], part / "debs"), part)
        for done in ("apt", "debs"):
            shutil.rmtree(part / done)

    with locked("pip-wheel"):
        folder = made_whole(final, make)
    wheels = sorted(folder.rglob("pip-*.whl"))
    if not wheels:
        raise MissingPieceError("python3-pip-whl held no pip wheel. What to do: install python3-venv as root.")
    return wheels[-1]
