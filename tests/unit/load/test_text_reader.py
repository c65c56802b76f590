"""The child that reads strangers' texts: what it may not do, and what a file costs that is too much for it."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import structlog

from worker.confinement import decoder_filter, means
from worker.data.text_reader import (
    CHECK_TRANSCRIPT,
    MANIFEST,
    TRANSCRIPT,
    ReadingLimits,
    TextReader,
    TextReaders,
)
from worker.data.transcripts import TextError
from worker.errors import NotStored

OPTIONS = {"timed": False, "longest_s": 30.0}


async def endless(piece: bytes):
    while True:
        yield piece


async def said(reader: TextReader, text: str = "Hello there.") -> str:
    """What the reader makes of an honest file."""
    data = text.encode()
    [(segment, fault)] = await reader.all_of(
        TRANSCRIPT, len(data), data, reason_code="unreadable_transcript", options=OPTIONS
    )
    assert fault is None
    return segment.text


async def drained(values) -> None:
    async with aclosing(values) as batches:
        async for _ in batches:
            pass


def pid_of(reader: TextReader) -> int:
    assert reader._child is not None
    return reader._child._process.pid


@pytest.fixture
async def make():
    made = []

    def reader(**limits) -> TextReader:
        made.append(TextReader(ReadingLimits(**limits)))
        return made[-1]

    yield reader
    for one in made:
        await one.close()


async def test_one_child_reads_file_after_file(make):
    reader = make()
    assert await said(reader, "Eins.\n zwei") == "Eins. zwei"
    first = pid_of(reader)
    assert await said(reader, "Drei.") == "Drei."
    assert pid_of(reader) == first


async def test_a_file_that_takes_too_much_processor_time_costs_itself_only(make):
    reader = make(cpu_s=0, cpu_s_per_mib=0)
    lines = b'{"audio_filepath": "a.wav", "text": "hello"}\n' * 1000
    with pytest.raises(TextError, match="s of processor time") as refused:
        await drained(reader.read(MANIFEST, 1, endless(lines), reason_code="bad_manifest_line"))
    assert refused.value.code == "bad_manifest_line"
    assert await said(reader) == "Hello there."


async def test_a_file_that_takes_too_much_memory_costs_itself_only(make):
    reader = make(memory_bytes=64 << 20)
    with pytest.raises(TextError, match="more than 64 MB of memory") as refused:
        await reader.all_of(
            TRANSCRIPT, 1 << 20, endless(b"x" * 100_000), reason_code="unreadable_transcript", options=OPTIONS
        )
    assert refused.value.code == "unreadable_transcript"
    assert await said(reader) == "Hello there."


async def test_an_error_of_ours_costs_one_file_and_is_logged_without_its_words(make):
    reader = make()
    with structlog.testing.capture_logs() as logs, pytest.raises(TextError, match="an error of ours") as refused:
        await reader.all_of(
            TRANSCRIPT, 6, b"secret", reason_code="unreadable_transcript", options={"no": "such option"}
        )
    assert refused.value.code == "unreadable_transcript"
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert "TypeError at text_child.py" in logs[0]["error"]
    assert "secret" not in str(logs)
    assert await said(reader) == "Hello there."


async def test_a_child_that_crashes_costs_one_file(make):
    reader = make()
    await said(reader)

    async def killing():
        yield b"x"
        os.kill(pid_of(reader), signal.SIGSEGV)
        while True:
            yield b"x" * 1000

    with structlog.testing.capture_logs() as logs, pytest.raises(TextError, match="an error of ours"):
        await reader.all_of(TRANSCRIPT, 1000, killing(), reason_code="unreadable_transcript", options=OPTIONS)
    assert logs[0]["code"] == -signal.SIGSEGV
    assert await said(reader) == "Hello there."


async def test_a_child_that_the_host_ended_between_two_files_costs_none(make):
    reader = make()
    await said(reader)
    first = pid_of(reader)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert await said(reader) == "Hello there."
    assert pid_of(reader) != first


async def test_a_source_that_fails_is_no_fault_of_the_file(make):
    reader = make()

    async def lost():
        yield b"x"
        raise NotStored("gone")

    with pytest.raises(NotStored):
        await reader.all_of(TRANSCRIPT, 1000, lost(), reason_code="unreadable_transcript", options=OPTIONS)
    assert await said(reader) == "Hello there."


async def test_a_source_that_fails_after_the_first_values_is_told_at_once(make):
    reader = make()
    told = asyncio.Event()

    async def lost():
        yield b'{"audio_filepath": "a.wav", "text": "hello"}\n' * 2_000
        await told.wait()
        raise NotStored("gone")

    async with aclosing(reader.read(MANIFEST, 1 << 20, lost(), reason_code="bad_manifest_line")) as batches:
        assert await anext(batches)
        told.set()
        with pytest.raises(NotStored):
            await drained(batches)
    assert await said(reader) == "Hello there."


async def test_a_child_that_the_host_kills_is_no_fault_of_the_file(make):
    """As where the host has no memory left: the run is tried again, and an upload is asked to come later."""
    reader = make()
    await said(reader)

    async def killing():
        yield b"x"
        os.kill(pid_of(reader), signal.SIGKILL)
        while True:
            yield b"x" * 1000

    with pytest.raises(ChildProcessError, match="killed from outside"):
        await reader.all_of(TRANSCRIPT, 1000, killing(), reason_code="unreadable_transcript", options=OPTIONS)
    assert await said(reader) == "Hello there."


async def test_a_signal_to_stop_is_for_the_owner_alone(make):
    """A service manager sends it to every process of the service."""
    reader = make()
    await said(reader)
    child = pid_of(reader)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(child, number)
    assert await said(reader) == "Hello there."
    assert pid_of(reader) == child


async def test_whoever_stops_early_leaves_a_reader_that_works(make):
    reader = make()
    lines = endless(b'{"audio_filepath": "a.wav", "text": "hello"}\n' * 1000)
    async with aclosing(reader.read(MANIFEST, 1 << 30, lines, reason_code="bad_manifest_line")) as batches:
        assert await anext(batches)
    reading = asyncio.ensure_future(
        reader.all_of(
            CHECK_TRANSCRIPT, 1 << 20, endless(b"x"), reason_code="unreadable_transcript", options={"timed": False}
        )
    )
    while reader._child is None:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await said(reader) == "Hello there."


async def test_the_child_has_no_files_no_children_no_core_and_no_credentials(make, monkeypatch):
    monkeypatch.setenv("WORKER_DATABASE_URL", "postgresql://secret")
    reader = make(memory_bytes=256 << 20)
    with Path("/dev/null").open() as ours:
        os.set_inheritable(ours.fileno(), True)  # noqa: FBT003 - as os has it
        await said(reader)
    child = pid_of(reader)
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        assert resource.prlimit(child, kind) == (0, 0)
    assert resource.prlimit(child, resource.RLIMIT_AS) == (256 << 20, 256 << 20)
    assert 0 < resource.prlimit(child, resource.RLIMIT_CPU)[0] < 60
    proc = Path(f"/proc/{child}")
    assert sorted(entry.name for entry in (proc / "fd").iterdir()) == ["0", "1", "2"]
    assert b"secret" not in (proc / "environ").read_bytes()
    assert "NoNewPrivs:\t1" in (proc / "status").read_text()
    assert f"Seccomp:\t{2 * means().seccomp}" in (proc / "status").read_text()
    assert (proc / "cwd").readlink() == Path("/")


@pytest.mark.skipif(not means().seccomp, reason=str(means()))
def test_a_child_that_is_taken_over_reaches_nothing_even_as_root(tmp_path):
    """What limits alone do not forbid: other files' names, other processes, and root's way back."""
    precious = tmp_path / "precious"
    precious.write_text("a recording")
    program = (
        "import ctypes, os, resource, socket, sys\n"
        "from worker.data import text_child\n"
        "text_child.give_up_everything(os.getppid(), 1 << 30, bytes.fromhex(sys.argv[1]))\n"
        "def way_back():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); os.open(sys.argv[2], os.O_RDONLY)\n"
        "def traced():\n"
        "    if ctypes.CDLL(None).ptrace(0x4206, os.getppid(), 0, 0): raise PermissionError\n"
        "tries = dict(remove=lambda: os.unlink(sys.argv[2]), rename=lambda: os.rename(sys.argv[2], sys.argv[2] + 'x'),\n"
        "    signal=lambda: os.kill(os.getppid(), 0), trace=traced, fork=os.fork, socket=socket.socket, back=way_back)\n"
        "for name, attempt in tries.items():\n"
        "    try: attempt()\n"
        "    except (OSError, ValueError): continue\n"
        "    os.write(1, f'{name}\\n'.encode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, decoder_filter(means()).hex(), str(precious)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert precious.exists()


@pytest.mark.skipif(not means().seccomp, reason=str(means()))
def test_texts_are_read_under_the_system_calls_that_the_apis_unit_allows():
    """deploy/systemd/speech-training-api.service takes away `systemd-analyze syscall-filter @resources`, what is in no
    @system-service, and memory that can be written and executed."""
    program = (
        "import asyncio, ctypes, errno, pyseccomp\n"
        "ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)\n"  # PR_SET_MDWE, Linux 6.3 or newer
        "from tests.unit.load.test_text_reader import said\n"
        "from worker.data.text_reader import TextReader\n"
        "unit = pyseccomp.SyscallFilter(pyseccomp.ALLOW)\n"
        "for name in ('ioprio_set', 'mbind', 'migrate_pages', 'move_pages', 'sched_setaffinity', 'sched_setattr',\n"
        "    'sched_setparam', 'sched_setscheduler', 'set_mempolicy', 'setpriority', 'setrlimit', 'seccomp',\n"
        "    'landlock_create_ruleset', 'landlock_add_rule', 'landlock_restrict_self'):\n"
        "    unit.add_rule(pyseccomp.ERRNO(errno.EPERM), name)\n"
        "unit.load()\n"
        "print(asyncio.run(said(TextReader())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert done.stdout == "Hello there.\n", done.stderr[-2_000:]


async def test_a_child_does_not_outlive_the_process_that_it_reads_for():
    program = (
        "import asyncio, os\n"
        "from tests.unit.load.test_text_reader import pid_of, said\n"
        "from worker.data.text_reader import TextReader\n"
        "async def main():\n"
        "    reader = TextReader(); await said(reader); print(pid_of(reader), flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        os.kill(child, signal.SIGSTOP)  # it notices nothing by itself
        owner.kill()
    while Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        await asyncio.sleep(0.01)


def test_limits_of_the_host_that_are_lower_than_ours_stay_and_files_are_read():
    program = (
        "import asyncio, os, resource, sys\n"
        "from worker.hardening import drop_privileges_of_root\n"
        "if 'limited' not in sys.argv:\n"  # root may raise every limit
        "    drop_privileges_of_root(); os.execv(sys.executable, [*sys.orig_argv, 'limited'])\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from tests.unit.load.test_text_reader import said\n"
        "from worker.data.text_reader import ReadingLimits, TextReader\n"
        "print(asyncio.run(said(TextReader(ReadingLimits(cpu_s=60, memory_bytes=4 << 30)))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert done.stdout == "Hello there.\n", done.stderr[-2_000:]


async def test_one_organizations_slow_files_leave_the_others_a_reader():
    readers = TextReaders(size=2)
    begun = asyncio.Event()

    async def slow():
        while True:
            begun.set()
            yield b'{"audio_filepath": "a.wav", "text": "hello"}\n'
            await asyncio.sleep(0.01)

    async def hostile():
        async with readers.turn(1) as reader:
            await reader.all_of(MANIFEST, 1 << 30, slow(), reason_code="bad_manifest_line")

    hostiles = [asyncio.ensure_future(hostile()) for _ in range(5)]
    await begun.wait()
    for _ in range(3):
        async with readers.turn(2) as reader:
            assert await said(reader) == "Hello there."
    for task in hostiles:
        task.cancel()
    await asyncio.gather(*hostiles, return_exceptions=True)
    await readers.close()
    assert len(readers._free) == 2


@pytest.mark.parametrize(
    "answer", [b"no frame at all", b"V\x00\x00\x00\x02{}", b"E\x00\x00\x00\x02[]", b"V\xff\xff\xff\xff"]
)
async def test_what_a_child_sends_is_checked(make, answer):
    reader = make()
    await said(reader)
    child = reader._child
    real = child._reader
    child._reader = asyncio.StreamReader()
    child._reader.feed_data(answer)
    child._reader.feed_eof()
    with structlog.testing.capture_logs() as logs, pytest.raises(TextError, match="an error of ours"):
        await said(reader)
    assert logs[0]["how"] in {"nonsense", "ended"}
    assert real.at_eof() or reader._child is None
    assert await said(reader) == "Hello there."
