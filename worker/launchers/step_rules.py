"""What one step may reach on its machine: its own inputs to read, its own folders to write, and programs."""

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import structlog

import worker
from schemas.steps import StepSpec
from worker.confinement import IsolationUnavailable, Means, Rules, means

Isolation = Literal["required", "best_available", "none"]

_log = structlog.get_logger()

_SOURCE: Final = Path(worker.__file__).parent.parent
_OURS: Final = tuple(_SOURCE / name for name in ("worker", "schemas", "sql"))
_MANIFEST, _BASE = "manifest", "base"
"""Names of inputs: the list of recordings, and what an operator brought rather than an earlier step."""
_MOST_LINKS: Final = 1_000
_LOOKED_AT: Final = 20
"""Recordings: they lie in one storage, and there may be hundreds of thousands."""
_PROGRAMS: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/opt/rocm"),
    "/etc/alternatives",
)
_READABLE: Final = (
    *("/proc", "/sys"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf"),
    *("/etc/ssl", "/etc/ca-certificates", "/etc/pki", "/etc/crypto-policies", "/etc/os-release", "/etc/mime.types"),
    *("/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/etc/nvidia"),
)
_NAME_SERVERS: Final = Path("/run/systemd/resolve")
"""Where /etc/resolv.conf often leads; the file is replaced now and then, which a rule for it alone does not survive."""
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "kfd", "dxg")
_DEVICE_PATTERNS: Final = ("nvidia*", "nvidia-caps*/*", "dri/*", "infiniband/*", "accel/*")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what several processes of one step share
_TOLD: Final = "import json, sys; print(json.dumps([[sys.prefix, sys.base_prefix], [sys.executable, *sys.path]]))"
_ENVIRONMENT_PARTS: Final = ("pyvenv.cfg", "bin", "lib", "lib64", "include", "share")
"""Of a Python environment that lies in a folder of which not all may be given."""
_TOLD_S: Final = 60.0


def found_means(isolation: Isolation, *, processes: int = 1, network: bool = False) -> Means:
    """What steps are kept apart with on this host.

    Args:
        isolation: as the setting says.
        processes: of one step.
        network: whether steps may use it.

    Raises:
        IsolationUnavailable: it is required, and there is not enough.
    """
    if isolation == "none":
        return Means(landlock=0, seccomp=False)
    found = replace(means(), several=processes > 1, network_given=network)
    if isolation == "required" and not found.enough:
        raise IsolationUnavailable(
            f"WORKER_TRAINER_ISOLATION=required, but trainers cannot be isolated on this host: {found}. It takes a "
            "kernel with Landlock (Linux 5.13 or newer, `landlock` in /sys/kernel/security/lsm) and seccomp, and the "
            "library libseccomp (Debian: libseccomp2); with WORKER_TRAINER_PROCESSES above 1 Linux 6.7 or newer. "
            "Or set best_available, and trainers reach what is not isolated."
        )
    return found


def program_folders(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a trainer's program, its interpreter and its libraries lie. Starts the interpreter once; blocks.

    Args:
        command: as it is started.
        environment: with which it is started; ``PYTHONPATH`` counts.
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        return ()  # its start will say so
    found = {one for path in (Path(program), Path(program).resolve()) for one in (path, path.parent)}
    if "python" in Path(program).name:
        told = subprocess.run(  # noqa: S603 - the trainer's own interpreter, as it is started for steps
            [program, "-c", _TOLD],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_TOLD_S,
            cwd="/",
        )
        with suppress(ValueError):  # a program that is no interpreter, whatever its name
            prefixes, places = json.loads(told.stdout)
            found |= {part for prefix in prefixes for part in _environment(Path(prefix))}
            found |= {Path(place) for place in places if place}
    found |= {Path(word) for word in command[1:] if word.startswith("/")}
    found |= {Path(place) for place in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep) if place}
    return (*(place for place in sorted(found) if not _is_too_much(place)), *_OURS)


def _environment(prefix: Path) -> Iterable[Path]:
    """What to give of a Python environment: its folder, or its parts where that is a home as well, for instance."""
    return _parts(prefix) if _is_too_much(prefix) else [prefix]


def _parts(prefix: Path) -> list[Path]:
    return [prefix / part for part in _ENVIRONMENT_PARTS]


def _is_too_much(place: Path) -> bool:
    """Whether it holds more than programs: our source's folder (its parts are given), a home, or everything."""
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir) if _has_home() else Path("/nonexistent")
    ours = place == _SOURCE and (place / "pyproject.toml").is_file()  # a checkout, no folder of installed packages
    return ours or place == Path("/tmp") or home.is_relative_to(place)  # noqa: S108 - not to be given


def _has_home() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False  # a container's user of a number only
    return True


def rules_of(  # noqa: PLR0913 - all that decides it
    spec: StepSpec,
    scratch: Path,
    *,
    programs: Iterable[Path],
    readable: Iterable[Path],
    writable: Iterable[Path],
    network: bool,
    processes: int,
) -> Rules:
    """The rules for one step. Reads the manifest; blocks.

    Args:
        spec: its inputs may be read, its output written.
        scratch: its private folder.
        programs: see ``program_folders``.
        readable: what the operator adds, programs too.
        writable: the same.
        network: whether it may use any.
        processes: several talk to each other over the loopback and share memory.
    """
    inputs = list(_inputs(spec))
    remote = any(place.startswith(("https://", "http://")) for place in spec.inputs.values())
    several = processes > 1 or network
    return Rules(
        programs=[*map(Path, _PROGRAMS), *_without_data(programs, spec, scratch), *readable],
        readable=[*map(Path, _READABLE), *inputs, *([_NAME_SERVERS] if network or remote else [])],
        listable=[_SOURCE],
        writable=[Path(spec.output), scratch, *writable, *([_SHARED_MEMORY] if several else [])],
        devices=list(_devices()),
        loopback=several,
        network=network or remote,
    )


def _without_data(programs: Iterable[Path], spec: StepSpec, scratch: Path) -> Iterator[Path]:
    """Programs' folders; of one in which steps' data lie as well, everybody's, only what belongs to an environment."""
    data = list(_data(spec, scratch))
    for place in programs:
        if any(one.is_relative_to(place) for one in data):
            _log.warning("programs and data lie in one folder: trainers read only its environment", folder=str(place))
            yield from _parts(place)
        else:
            yield place


def _data(spec: StepSpec, scratch: Path) -> Iterator[Path]:
    yield from (scratch, Path(spec.output))
    yield from (Path(address) for name, address in spec.inputs.items() if name != _BASE)  # weights can be a package
    manifest = Path(spec.inputs.get(_MANIFEST, "/nowhere"))
    if manifest.is_file():
        yield from islice(_recordings(manifest), _LOOKED_AT)


def _inputs(spec: StepSpec) -> Iterator[Path]:
    for name, address in spec.inputs.items():
        path = Path(address)
        # a link that an earlier step left in the place of its output would lead wherever it likes
        if not path.is_absolute() or (path.is_symlink() and name != _BASE):
            continue
        yield path
        if name == _BASE and path.is_dir():
            yield from _linked(path)
        if name == _MANIFEST and path.is_file():
            yield from _recordings(path)


def _linked(folder: Path) -> Iterator[Path]:
    """Where links in a folder of base weights lead: a hub's cache consists of them."""
    for _, path in zip(range(_MOST_LINKS), folder.rglob("*"), strict=False):
        if path.is_symlink():
            yield path.resolve()


def _recordings(manifest: Path) -> Iterator[Path]:
    with manifest.open("rb") as lines:
        seen = ""
        for line in lines:
            if line.strip():
                place = str(json.loads(line).get("audio", ""))
                if place != seen and place.startswith("/"):
                    yield Path(place)
                seen = place


def _devices() -> Iterator[Path]:
    yield from (Path("/dev") / name for name in _DEVICES)
    for pattern in _DEVICE_PATTERNS:
        yield from (path for path in Path("/dev").glob(pattern) if not path.is_dir())
