"""Makes a process look like one on another system: `as_windows` and `without` are called in a
process of their own, before bertfast is imported.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import importlib
import os
import signal
import sys
from typing import Any

# What CPython lacks on Windows, as its documentation says; but for flags of os.open, which filelock
# and shutil read at every call.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
ATTRIBUTES = {
    os: """WNOHANG chown chroot confstr fchdir
    fchmod fchown fdatasync fork forkpty getegid geteuid getgid getgroups getloadavg getpgid
    getpriority getresuid getuid killpg lchown lockf memfd_create mkfifo mknod nice openpty pathconf
    pipe2 posix_fadvise posix_fallocate posix_spawn pread preadv pwrite pwritev readv
    register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid
    setpgid setpriority setsid setuid statvfs sync sysconf sysconf_names tcgetpgrp ttyname uname
    wait3 wait4 writev""",
    signal: """SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1
    SIGUSR2 alarm getitimer pause pthread_kill pthread_sigmask setitimer sigpending sigwait""",
}
# These ask what system they are on when they are imported, and must get the true answer.
THEIRS = """accelerate filelock huggingface_hub matplotlib.pyplot multiprocessing.reduction
multiprocessing.util numpy requests rich.console rich.progress rich.table safetensors.torch
uvicorn uvicorn.protocols.http.httptools_impl click subprocess tempfile tokenizers
torch.distributed torch.utils.tensorboard transformers yaml"""


def as_windows() -> None:
    """Takes from bertfast what only POSIX has, and says ``win32`` for ``sys.platform``."""
    for name in THEIRS.split():
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    for owner, names in ATTRIBUTES.items():
        for name in names.split():
            if hasattr(owner, name):
                delattr(owner, name)
    import_ = builtins.__import__

    def importing(name: str, globals: Any = None, *args: Any, **kwargs: Any) -> Any:
        if name in MODULES and (globals or {}).get("__name__", "").startswith("bertfast"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_(name, globals, *args, **kwargs)

    builtins.__import__ = importing  # type: ignore[assignment]
    opened, flush, load = os.open, os.fsync, ctypes.CDLL

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if "dir_fd" not in kwargs and os.path.isdir(path):  # shutil.rmtree's are its own affair
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags, *args, **kwargs)

    def fsync(descriptor: int) -> None:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flush(descriptor)

    class CDLL(load):  # type: ignore[misc, valid-type]
        def __init__(self, name: Any, *args: Any, **kwargs: Any) -> None:
            if name is None:
                raise TypeError("bad argument type for built-in operation")
            super().__init__(name, *args, **kwargs)

    os.open, os.fsync, ctypes.CDLL = open_, fsync, CDLL  # type: ignore[assignment, misc]
    os.environ["USERNAME"] = "user"
    sys.platform = "win32"


def without(*packages: str) -> None:
    """Has imports of these packages, and their versions, fail as where they are not installed."""
    from importlib import metadata

    for package in packages:
        sys.modules[package] = None  # type: ignore[assignment]
    version = metadata.version

    def absent(name: str) -> str:
        if name in packages:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    metadata.version = absent
