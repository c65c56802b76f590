"""The example of a reverse proxy: nginx understands it, and its limits fit the API's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.local.optional import SEARCHED
from worker.api.bodies import PATIENCE_S
from worker.api.connections import LARGEST_HEAD_BYTES, Patience
from worker.api.limits import DESCRIPTORS_PER_UPLOAD, MOST_DOWNLOADS, OTHER_DESCRIPTORS
from worker.api.settings import ApiSettings
from worker.api.watch import LONGEST_WATCH_S
from worker.data.text_reader import ReadingLimits, TextReaders

CONF = Path("deploy/nginx/api.conf")
UNITS = {"": 1, "s": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def said(name: str) -> list[str]:
    found = re.findall(rf"^\s*{name}\s+([^;]+);", CONF.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{name} is not set"
    return found[-1].split()


def number(text: str) -> int:
    digits, unit = re.fullmatch(r"(\d+)([smkg]?)", text).groups()  # type: ignore[union-attr]
    return int(digits) * UNITS[unit]


def test_its_limits_fit_the_apis() -> None:
    patience = Patience()
    count, size = said("large_client_header_buffers")
    assert int(count) * number(size) <= LARGEST_HEAD_BYTES
    assert number(said("client_header_timeout")[0]) <= patience.head_s
    assert number(said("client_body_timeout")[0]) <= PATIENCE_S
    assert number(said("client_max_body_size")[0]) >= ApiSettings().api_largest_request_bytes
    assert number(said("proxy_read_timeout")[0]) > LONGEST_WATCH_S
    upstream = CONF.read_text(encoding="utf-8").partition("upstream")[2].partition("}")[0]
    assert number(re.findall(r"keepalive_timeout (\w+);", upstream)[0]) < patience.idle_s


def test_what_a_client_says_about_itself_is_replaced() -> None:
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in CONF.read_text(encoding="utf-8")
    assert said("proxy_request_buffering") == ["off"]


def test_nginx_understands_it(tmp_path: Path) -> None:
    nginx, openssl = (shutil.which(name, path=SEARCHED) for name in ("nginx", "openssl"))
    if nginx is None or openssl is None:
        pytest.skip("needs Debian's nginx and openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=a",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    text = CONF.read_text(encoding="utf-8").replace("/etc/nginx/tls/training.example.key", str(key))
    text = text.replace("/etc/nginx/tls/training.example.crt", str(certificate))
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = tmp_path / "nginx.conf"
    whole.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{text}\n}}\n")
    checked = subprocess.run(
        [nginx, "-t", "-e", tmp_path / "log", "-p", tmp_path, "-c", whole], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_a_pod_has_room_for_what_its_settings_allow() -> None:
    pod = next(
        one
        for one in yaml.safe_load_all(Path("deploy/kubernetes/base/api.yaml").read_text(encoding="utf-8"))
        if one["kind"] == "Deployment"
    )["spec"]["template"]["spec"]
    settings = ApiSettings()
    gib = {"Gi": 1 << 30, "Mi": 1 << 20}
    scratch = next(one for one in pod["volumes"] if one["name"] == "scratch")["emptyDir"]["sizeLimit"]
    limits = pod["containers"][0]["resources"]["limits"]
    # Parts of large files lie beside unfinished uploads until they are whole: 64 MiB for each slot.
    needed = settings.api_upload_bytes + settings.api_uploads_at_once * (64 << 20)
    for size in (scratch, limits["ephemeral-storage"]):
        assert needed <= int(size[:-2]) * gib[size[-2:]]
    # Every connection with an unfinished head as large as it may be, twice (ours and the parser's), beside the process.
    heads = settings.api_connections * LARGEST_HEAD_BYTES * 2
    children = len(TextReaders()._all) * ReadingLimits().memory_bytes
    assert heads + children + (256 << 20) <= int(limits["memory"][:-2]) * gib[limits["memory"][-2:]]


def test_the_unit_has_descriptors_for_what_the_settings_allow() -> None:
    settings = ApiSettings()
    unit = Path("deploy/systemd/speech-training-api.service").read_text(encoding="utf-8")
    files = int(re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)[0])
    uploads = settings.api_uploads_at_once * DESCRIPTORS_PER_UPLOAD
    others = OTHER_DESCRIPTORS + settings.api_database_connections + uploads + MOST_DOWNLOADS
    assert files >= settings.api_connections + others
    assert re.search(r"^MemoryMax=", unit, re.MULTILINE)
