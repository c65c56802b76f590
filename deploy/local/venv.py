"""The virtual environment for the project's dependencies, shared by every clone that asks for the same."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.local.cache import cache_root, digest, locked
from deploy.local.debs import has_apt, install_pip_wheel
from deploy.local.locked import entry, requirements
from deploy.local.report import MissingPieceError, say

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "3"  # raise it when the way of making changes
TORCH = "2.13.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_S = 5.0
UNUSED_DAYS = 14
SHOWN = re.compile(r"\s*((Downloading|Processing) .*(\d\d\.\d MB|GB)|Building wheel|Installing collected)")


@dataclass(frozen=True)
class Venv:
    """A virtual environment named after the interpreter and the requirements it is made from."""

    folder: Path
    requirements: tuple[str, ...]
    constraints: Path | None
    with_torch: bool

    @classmethod
    def for_project(cls, root: Path, extras: list[str]) -> Venv:
        """The environment for the project's dependencies and these extras.

        Raises:
            MissingPieceError: pyproject.toml has no such extra.
        """
        project = root / "pyproject.toml"
        try:
            wanted = requirements(project, extras)
        except KeyError as error:
            raise MissingPieceError(f"pyproject.toml has no extra named {error}.") from None
        if not os.environ.get("WORKER_DATABASE_URL"):
            wanted += [line for line in requirements(project, ["dev"]) if line.startswith("embedded-")]
        asked = tuple(sorted(set(wanted)))
        constraints = root / "deploy/local/constraints.txt"
        name = digest(
            FORMAT,
            os.path.realpath(sys.executable),
            platform.python_version(),
            platform.machine(),
            os.environ.get("SPEECH_WORKER_TORCH", TORCH),
            constraints.read_text() if constraints.exists() else "",
            *asked,
        )
        return cls(
            folder=cache_root() / "venvs" / f"py{sys.version_info[0]}{sys.version_info[1]}-{name}",
            requirements=asked,
            constraints=constraints if constraints.exists() else None,
            with_torch="trainer" in extras,
        )

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def _marker(self) -> Path:
        return self.folder / ".complete"

    @property
    def complete(self) -> bool:
        """Whether everything was installed to the end; a virtual environment cannot be renamed into place."""
        return self._marker.exists()

    def make(self) -> None:
        """Make it if it is not there; a half-made one is thrown away first."""
        with locked(f"venv-{self.folder.name}"):
            if not self.complete:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                _remove_unused(self.folder.parent)
                self._create()
                self._upgrade_pip()  # small: without a network it ends here
                if self.with_torch:
                    self._install_torch()
                say("  installing the other packages …")
                self._pip("install", *self.requirements, locked=True)
                self._compile()
                self._marker.write_text(self._torch_loads() if self.with_torch else "")
            self._marker.touch()  # says when it was last used
        if self.with_torch:
            say(f"  {self._marker.read_text()}")

    def _create(self) -> None:
        say(f"  making a virtual environment with Python {platform.python_version()}")
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(self.folder)], capture_output=True, text=True, check=False
        )
        if made.returncode == 0:
            return
        # Debian and Ubuntu ship pip for venvs in a package of its own; without it this fails.
        if not has_apt():
            raise MissingPieceError(
                f"`python -m venv` failed: {made.stdout or made.stderr}\nWhat to do: install its venv module."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder)], check=True)
        wheel = install_pip_wheel()
        subprocess.run(
            [str(self.python), f"{wheel}/pip", "install", "-q", "--no-index", "--no-compile", str(wheel)],
            check=True,
        )

    def _upgrade_pip(self) -> None:
        """To the locked release: older ones do not look at hashes in constraints."""
        if self.constraints is None:
            self._pip("install", "--upgrade", "pip")
            return
        requirement = self.folder / "pip-requirement.txt"
        requirement.write_text(entry(self.constraints, "pip"))
        self._pip("install", "--upgrade", "--require-hashes", "--requirement", str(requirement))

    def _install_torch(self) -> None:
        """PyTorch, the smallest build that can be had: local or configured index, PyTorch's own, plain.

        Without the hashes of the lock, which cannot know the build. A CPU build comes alone: what it needs is locked,
        and comes with the other packages.
        """
        named = os.environ.get("SPEECH_WORKER_TORCH")
        if named:
            say(f"  installing PyTorch as SPEECH_WORKER_TORCH names it: {named}")
            self._pip("install", *named.split())
            return
        say(f"  installing PyTorch {TORCH}, CPU build …")
        exact = f"torch=={TORCH}+cpu"
        if platform.system() == "Linux" and platform.machine() == "x86_64":
            if self._pip_quietly("install", "--no-deps", exact):
                return
            if _reachable(f"{PYTORCH_CPU_INDEX}/torch/"):
                say("  not in the configured package index; taking it from PyTorch's own (about 200 MB)")
                self._pip("install", "--no-deps", exact, "--extra-index-url", PYTORCH_CPU_INDEX)
                return
            say(
                "  no CPU build for this Python can be reached: the plain build comes with CUDA libraries "
                "(about 3 GB to download, 7 GB of disk)"
            )
            _check_free(self.folder, 8_000)
        self._pip("install", f"torch=={TORCH}")

    def _compile(self) -> None:
        """Compile all packages, with every processor; pip would take one, and take longer.

        Where PYTHONDONTWRITEBYTECODE is set nobody else ever does: each process compiles what it imports, a trainer
        for five seconds and a worker for one.
        """
        say("  compiling them, once for all processes …")
        packages = sysconfig.get_path("purelib", vars={"base": str(self.folder)})
        # files that are no Python, such as templates, are told and passed over
        subprocess.run(
            [str(self.python), "-m", "compileall", "-q", "-j", "0", packages], capture_output=True, check=False
        )

    def _torch_loads(self) -> str:
        """Which PyTorch it became, for people to read; raises MissingPieceError when it does not load."""
        asked = "import torch; print('PyTorch', torch.__version__, 'with CUDA', torch.version.cuda)"
        said = subprocess.run([str(self.python), "-c", asked], capture_output=True, text=True, check=False)
        if said.returncode:
            raise MissingPieceError(
                f"PyTorch does not load: {said.stderr.strip().splitlines()[-1]}\n"
                f"What to do: remove {self.folder} and start again."
            )
        return said.stdout.strip()

    def _pip_command(self, *arguments: str, locked: bool = False) -> list[str]:
        # Named, so that it holds even for a lock from which the hashes were lost.
        limits = ["--require-hashes", "--constraint", str(self.constraints)] if locked and self.constraints else []
        switches = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        return [
            str(self.python),
            "-m",
            "pip",
            *arguments,
            *switches,
            "--no-compile",
            "--timeout",
            "30",
            "--retries",
            "2",
            *limits,
        ]

    def _pip_quietly(self, *arguments: str) -> bool:
        command = self._pip_command(*arguments)
        return subprocess.run(command, capture_output=True, check=False, close_fds=False).returncode == 0

    def _pip(self, *arguments: str, locked: bool = False) -> None:
        """Run pip, showing what it downloads.

        Args:
            arguments: pip's own.
            locked: install nothing whose hash is not in the constraints.

        Raises:
            MissingPieceError: with pip's last words.
        """
        heard: list[str] = []
        with subprocess.Popen(
            self._pip_command(*arguments, locked=locked),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            close_fds=False,  # see `locked`
        ) as pip:
            assert pip.stdout is not None
            for line in pip.stdout:
                heard.append(line.rstrip())
                if SHOWN.match(line):
                    say(f"    {line.strip()[:100]}")
        if pip.returncode:
            last = "\n".join(line for line in heard if "is ignored" not in line).splitlines()[-8:]
            raise MissingPieceError(
                "pip could not install the Python packages:\n  " + "\n  ".join(last) + "\n"
                "What to do: check the network (https_proxy, PIP_INDEX_URL), then start again; what was "
                "downloaded is kept."
            )


def _reachable(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=PROBE_S):  # noqa: S310 - an https address of ours
            return True
    except OSError:
        return False


def _check_free(folder: Path, needed_mb: int) -> None:
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < needed_mb:
        raise MissingPieceError(
            f"that needs {needed_mb:,} MB of disk in {folder}, and {free:,} MB are free.\n"
            "What to do: use Python 3.11 to 3.13 where PyTorch's CPU index can be reached, or free some disk."
        )


def _remove_unused(folder: Path) -> None:
    """Throw away environments that nobody has asked for in a fortnight."""
    for old in folder.iterdir():
        marker = old / ".complete"
        if marker.exists() and time.time() - marker.stat().st_mtime > UNUSED_DAYS * 86_400:
            shutil.rmtree(old, ignore_errors=True)
