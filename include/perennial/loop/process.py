"""Which process a run is, so that another one on the same machine can see that it has died."""

from __future__ import annotations

import os
from pathlib import Path

#: places of the state and of the start among the fields of /proc/PID/stat behind the program's name, proc(5)
_STATE, _START = 0, 19


def own_process() -> str:
    """This process, as boot, process namespace, id and start; empty where the system does not tell.

    The boot and the namespace say where the id means anything: containers count their processes each from one.
    """
    try:
        return f"{_here()}/{os.getpid()}/{_start(os.getpid())}"
    except OSError:
        return ""


def has_died(process: str) -> bool:
    """Whether a process of this machine has ended. One of another machine, or nobody's, is not known to have."""
    if not process:
        return False
    *here, pid, start = process.rsplit("/", 2)
    try:
        if here != [_here()]:
            return False
    except OSError:
        return False
    try:
        return _start(int(pid)) != start
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return not _answers(int(pid))


def _answers(pid: int) -> bool:
    """Whether there is such a process, where /proc hides those of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _start(pid: int) -> str:
    """When it was started, in ticks since the boot; a zombie has ended already."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[_STATE] in "ZX" else fields[_START]
