"""The rules for a process that must not reach what is not its own: files, network, other processes.

Two mechanisms of the kernel, which need no privileges and work in containers: Landlock (files, TCP ports, signals;
Linux 5.13 or newer, more of it in newer ones) and seccomp (system calls, sockets above all). ``landlockpy`` and
libseccomp, through ``pyseccomp``, make the rules here; ``worker.hardening.confine`` lays them on a process.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_RAW
from typing import Any, Final

import structlog

from worker.errors import WorkerError

_log = structlog.get_logger()

_FILES_ABI, _TCP_ABI, _SIGNALS_ABI = 1, 4, 6
"""Landlock's versions: since which it knows what."""
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FAMILIES: Final = 64
"""More than the kernel has families of sockets."""
_SOCKET_TYPE: Final = 0xF
_CLONE_NEWUSER: Final = 0x10000000

_FORBIDDEN: Final = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    # sockets past the rules for sockets
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    # the kernel's larger surfaces, of which no training needs any
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "fanotify_init"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    # another view of the system
    *("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "open_tree", "move_mount"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
    *("open_by_handle_at", "name_to_handle_at", "quotactl", "acct", "swapon", "swapoff", "reboot"),
    *("iopl", "ioperm", "settimeofday", "clock_settime", "sethostname", "setdomainname", "syslog"),
)
"""System calls that fail with EPERM in a training step."""

_DECODER_NEEDS: Final = (
    *("read", "write", "readv", "writev", "pread64", "lseek", "close", "fstat", "newfstatat", "fcntl", "dup"),
    *("recvmsg", "sendmsg", "recvfrom", "sendto", "poll", "ppoll", "getsockopt", "getsockname"),
    *("mmap", "munmap", "mremap", "mprotect", "madvise", "brk"),
    *("futex", "sched_yield", "sched_getaffinity", "set_robust_list", "rseq", "membarrier"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_nanosleep", "nanosleep", "gettimeofday", "getrandom", "getrusage", "times"),
    *("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "sysinfo", "uname"),
    *("getrlimit", "setrlimit", "prlimit64", "exit", "exit_group"),
)
"""System calls of a process that reads what it is handed, recordings or texts; every other fails with EPERM."""


class IsolationUnavailable(WorkerError):  # noqa: N818 - a state of the host
    """Isolation is required, and this host cannot give it."""


@dataclass(frozen=True, slots=True)
class Means:
    """What this host has for keeping a process apart."""

    landlock: int
    """Landlock's version; 0: none."""
    seccomp: bool
    several: bool = False
    """Steps consist of processes that talk to each other over TCP: their network is a matter of ports."""
    network_given: bool = False
    """An operator lets steps use the network."""

    @property
    def files(self) -> bool:
        """Whether only named files can be opened."""
        return self.landlock >= _FILES_ABI

    @property
    def network(self) -> bool:
        """Whether steps reach nobody over it; with several processes only Landlock tells one port from another."""
        return self.seccomp and not self.network_given and (not self.several or self.landlock >= _TCP_ABI)

    @property
    def signals(self) -> bool:
        """Whether signals reach no process outside."""
        return self.landlock >= _SIGNALS_ABI

    @property
    def enough(self) -> bool:
        """Whether this is what "required" means: files, and network where nobody gave it."""
        return self.files and (self.network or (self.network_given and self.seccomp))

    def __str__(self) -> str:
        """For people: what is kept apart, and by what."""
        parts = {"files": self.files, "network": self.network, "signals": self.signals}
        kept = [name for name, there in parts.items() if there]
        open_ = [name for name, there in parts.items() if not there]
        by = f"Landlock {self.landlock or 'none'}, seccomp {'yes' if self.seccomp else 'none'}"
        return f"isolated: {', '.join(kept) or 'nothing'}; not isolated: {', '.join(open_) or 'nothing'} ({by})"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a training step may reach; everything else it may not."""

    programs: Sequence[Path] = ()
    """Folders and files that may be read and executed."""
    readable: Sequence[Path] = ()
    listable: Sequence[Path] = ()
    """Folders whose names may be read, not the files: what Python looks for modules in."""
    writable: Sequence[Path] = ()
    devices: Sequence[Path] = ()
    loopback: bool = False
    """Sockets between the step's own processes: TCP to and from the ports that the kernel gives out, no other."""
    network: bool = False
    """No rule for the network at all."""


def means() -> Means:
    """What the kernel and the libraries of this host offer."""
    landlock, seccomp = 0, False
    with suppress(Exception):  # no module, no library, no Landlock: all the same to whoever asks
        import landlockpy  # noqa: PLC0415 - a platform without it is told of, not failed on

        landlock = landlockpy.abi_version() if landlockpy.supported() else 0
    with suppress(Exception):
        _library()
        seccomp = "Seccomp:" in Path("/proc/self/status").read_text(encoding="utf-8")
    return Means(landlock, seccomp)


def _library() -> Any:
    import pyseccomp  # noqa: PLC0415 - raises where libseccomp is missing

    return pyseccomp


def ruleset_of(rules: Rules, found: Means) -> int | None:
    """A Landlock ruleset's descriptor, for the caller to close; None where the kernel has no Landlock.

    A path that is not there, or that this user may not open, is left out: no rule could change that.

    Raises:
        OSError: the kernel refuses.
    """
    if not found.files:
        return None
    from landlockpy import AccessFS as Fs  # noqa: PLC0415 - see `means`
    from landlockpy import AccessNet, Ruleset, Scope  # noqa: PLC0415

    read = Fs.READ_FILE | Fs.READ_DIR
    whole = Fs(~Fs.NONE) & ~(Fs.MAKE_CHAR | Fs.MAKE_BLOCK)
    scoped = Scope.SIGNAL if rules.network else Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET
    with Ruleset(handled_net=AccessNet.NONE if rules.network else None, scoped=scoped) as ruleset:
        wanted = (
            (rules.programs, read | Fs.EXECUTE),
            (rules.readable, read),
            (rules.listable, Fs.READ_DIR),
            (rules.writable, whole),
            (rules.devices, read | Fs.WRITE_FILE | Fs.IOCTL_DEV),
        )
        of_file = Fs.READ_FILE | Fs.WRITE_FILE | Fs.EXECUTE | Fs.TRUNCATE | Fs.IOCTL_DEV
        for paths, access in wanted:
            for path in paths:
                with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    ruleset.allow_path(path, access if path.is_dir() else access & of_file)
        if rules.loopback and not rules.network:
            for port in (0, *_given_ports()):
                ruleset.allow_port(port, AccessNet.BIND_TCP | AccessNet.CONNECT_TCP)
        return os.dup(ruleset.fileno())


def _given_ports() -> Iterable[int]:
    """The ports that the kernel gives to whoever asks for any."""
    first, last = map(int, _PORT_RANGE.read_text(encoding="ascii").split())
    return range(first, last + 1)


def step_filter(rules: Rules, found: Means) -> bytes:
    """A seccomp filter for a training step; empty where there is none."""
    if not found.seccomp:
        return b""
    library = _library()
    made = library.SyscallFilter(library.ALLOW)
    refused = library.ERRNO(errno.EPERM)
    for name in _FORBIDDEN:
        _refuse(made, refused, name)
    made.add_rule(refused, "clone", library.Arg(0, library.MASKED_EQ, _CLONE_NEWUSER, _CLONE_NEWUSER))
    # its flags lie in memory, where no filter looks: C libraries fall back to clone
    made.add_rule(library.ERRNO(errno.ENOSYS), "clone3")
    if not rules.network:
        for arguments in _refused_sockets(library, loopback=rules.loopback):
            made.add_rule(refused, "socket", *arguments)
        if not rules.loopback:
            _refuse(made, refused, "connect")
    return _exported(made)


def _refused_sockets(library: Any, *, loopback: bool) -> Iterator[tuple[Any, ...]]:
    """Arguments of ``socket`` that are refused.

    Unix sockets can be made, for CUDA's driver makes one for itself, but without ``connect`` they reach nobody.
    """
    families = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK} if loopback else {AF_UNIX}
    for family in set(range(_FAMILIES)) - families:
        yield (library.Arg(0, library.EQ, family),)
    yield (library.Arg(0, library.GE, _FAMILIES),)
    for family in families - {AF_NETLINK}:
        for kind in (SOCK_DGRAM, SOCK_RAW):
            yield library.Arg(0, library.EQ, family), library.Arg(1, library.MASKED_EQ, _SOCKET_TYPE, kind)


def decoder_filter(found: Means) -> bytes:
    """A seccomp filter for a process that decodes, or reads texts: what it needs, and no more."""
    if not found.seccomp:
        return b""
    library = _library()
    made = library.SyscallFilter(library.ERRNO(errno.EPERM))
    for name in _DECODER_NEEDS:
        with suppress(OSError):  # another processor has no such call
            made.add_rule(library.ALLOW, name)
    return _exported(made)


def _refuse(made: Any, refused: int, name: str) -> None:
    try:
        made.add_rule(refused, name)
    except (OSError, ValueError):
        _log.debug("system call unknown to libseccomp", name=name)


def _exported(made: Any) -> bytes:
    with os.fdopen(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
