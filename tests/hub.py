"""A small model hub on loopback: names that mean a commit, and files by commit."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD, NEW = "a" * 40, "b" * 40
MODEL = "clinic/whisper-small"


def content(name: str, commit: str) -> bytes:
    if name == "generation_config.json":
        return json.dumps({"is_multilingual": False, "commit": commit}).encode()
    return json.dumps({"file": name, "commit": commit}).encode()


FILES = ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")


@contextmanager
def hub(main: str) -> Iterator[tuple[str, list[str]]]:
    """What a hub answers: the commit of a name, and files by commit. Yields its address and what was asked."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            info = re.fullmatch(rf"/api/models/{MODEL}(?:/revision/(\w+))?", path)
            tree = re.fullmatch(rf"/api/models/{MODEL}/tree/(\w+)", path)
            file = re.fullmatch(rf"/{MODEL}/resolve/(\w+)/(.+)", path)
            if info:
                commit = info[1] if info[1] and len(info[1]) == 40 else main
                self.reply(
                    json.dumps({"id": MODEL, "sha": commit, "siblings": [{"rfilename": n} for n in FILES]}).encode()
                )
            elif tree:
                entries = [
                    {"type": "file", "path": n, "size": len(content(n, tree[1])), "oid": "0" * 40} for n in FILES
                ]
                self.reply(json.dumps(entries).encode())
            elif file:
                commit = file[1] if len(file[1]) == 40 else main
                self.reply(content(file[2], commit), {"X-Repo-Commit": commit, "ETag": f'"{commit}-{file[2]}"'})
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - as the server calls it

        def reply(self, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
