"""The log that keeps its beginning and its end."""

import os

from hypothesis import given
from hypothesis import strategies as st

from worker.launchers.bounded_log import BoundedLog


@given(
    lines=st.lists(st.binary(min_size=0, max_size=300), min_size=1, max_size=80),
    limit=st.integers(min_value=1000, max_value=5000),
)
def test_log_stays_within_its_limit_and_accounts_for_every_byte(lines, limit):
    descriptor = os.memfd_create("log")
    try:
        log = BoundedLog(descriptor, limit)
        written = b""
        for line in lines:
            data = line.replace(b"\n", b" ").replace(b"[", b"(") + b"\n"
            written += data
            log.write(data)
        content = os.pread(descriptor, 1_000_000, 0)
    finally:
        os.close(descriptor)
    assert len(content) <= limit
    head, notice, rest = content.partition(b"[")
    assert written.startswith(head)
    if not notice:
        assert content == written
        return
    count, _, tail = rest.partition(b" bytes of output left out here]\n")
    assert written.endswith(tail)
    assert len(head) + int(count) + len(tail) == len(written)


def test_one_huge_write_stays_within_the_limit(tmp_path):
    with (tmp_path / "log").open("wb+", buffering=0) as file:
        BoundedLog(file.fileno(), 1000).write(b"x" * 10_000 + b"\nend\n")
    content = (tmp_path / "log").read_bytes()
    assert len(content) <= 1000
    assert content.endswith(b"end\n")


def test_what_an_earlier_step_wrote_stays(tmp_path):
    with (tmp_path / "log").open("wb+", buffering=0) as file:
        BoundedLog(file.fileno(), 1000).write(b"first\n")
        BoundedLog(file.fileno(), 1000).write(b"second\n")
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_full_disk_loses_output_and_raises_nothing():
    descriptor = os.open("/dev/full", os.O_RDWR)
    try:
        BoundedLog(descriptor, 1000).write(b"x" * 100)
    finally:
        os.close(descriptor)
