"""A step that has been taken over: tries what it should not reach, and says in its output what it reached."""

import ctypes
import json
import os
import socket
import sys
import time
from pathlib import Path

spec = json.loads(sys.stdin.buffer.read())
told = spec["parameters"]
libc = ctypes.CDLL(None, use_errno=True)


def called(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def read(path):
    assert Path(path).read_bytes() or path.startswith("/proc")


def write(path):
    with Path(path).open("ab"):
        pass


def unix(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


def tcp(port):
    socket.create_connection(("127.0.0.1", port), 5).close()


def udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"a question of DNS", ("127.0.0.1", port))


def listen(port):
    socket.create_server(("127.0.0.1", port)).close()


worker = told["worker"]
mine, theirs = told["mine"], told["theirs"]
TRIES = {
    "the worker's environment": lambda: read(f"/proc/{worker}/environ"),
    "the worker's memory": lambda: Path(f"/proc/{worker}/mem").open("rb").close(),
    "trace the worker": lambda: called(libc.ptrace, 0x4206, worker, 0, 0),
    "a descriptor of the worker": lambda: Path(f"/proc/{worker}/fd/0").readlink(),
    "kill the worker": lambda: os.kill(worker, 0),
    "kill the supervisor": lambda: os.kill(os.getppid(), 0),
    "another organization's recording": lambda: read(theirs),
    "another organization's folder": lambda: next(Path(theirs).parent.iterdir()),
    "write another organization's recording": lambda: write(theirs),
    "write its own input": lambda: write(mine),
    "shorten its own input": lambda: os.truncate(mine, 0),
    "a link to another organization's recording": lambda: (
        Path(spec["output"], "link").symlink_to(theirs),
        read(f"{spec['output']}/link"),
    ),
    "a hard link to it": lambda: os.link(theirs, f"{spec['output']}/hard"),
    "secrets": lambda: read(told["secret"]),
    "the worker's home": lambda: list(Path(told["home"]).iterdir()),
    "a file in the common temporary folder": lambda: write(f"/tmp/prisoner-{worker}"),
    "Postgres": lambda: tcp(told["port"]),
    "a name server": lambda: udp(told["port"]),
    "listen": lambda: listen(0),
    "a Unix socket": lambda: unix(told["unix"]),
    "a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    "its own network": lambda: called(libc.unshare, 0x10000000 | 0x40000000),
    "io_uring": lambda: called(libc.syscall, 425, 1, ctypes.create_string_buffer(120)),
    "remove another organization's recording": lambda: Path(theirs).rename(theirs + ".gone"),
    "keys of the kernel": lambda: called(libc.syscall, 250, 0, -3, 0, 0, 0),
}
ALLOWED = {
    "read its recording": lambda: read(mine),
    "read its manifest": lambda: read(spec["inputs"]["manifest"]),
    "write its output": lambda: Path(spec["output"], "there").write_text("x"),
    "write its scratch": lambda: Path(os.environ["TMPDIR"], "there").write_text("x"),
    "start a program": lambda: called(os.system, "true"),
    "a thread": lambda: __import__("threading").Thread(target=int).start(),
    "a library": lambda: __import__("pydantic"),
    "a null device": lambda: write("/dev/null"),
    "a socket pair": socket.socketpair,
    "a Unix socket of its own": lambda: socket.socket(socket.AF_UNIX),
}
found = {}
for name, do in {**TRIES, **ALLOWED}.items():
    try:
        do()
    except Exception as error:  # noqa: BLE001 - whatever keeps it out is the answer
        found[name] = f"refused: {error!r}"
    else:
        found[name] = "done"
Path(spec["output"], "found.json.part").write_text(json.dumps(found))
Path(spec["output"], "found.json.part").rename(Path(spec["output"], "found.json"))
if told.get("stay"):
    time.sleep(1_000)
