"""What the agent's own process uses, and its bounds: memory and file descriptors.

A leak shows itself days later on a device that nobody can reach; the agent tells of it before the kernel ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from dataclasses import dataclass
from pathlib import Path

PROC_SELF = Path("/proc/self")


@dataclass(frozen=True)
class Usage:
    """What a process holds; None: not measured.

    Attributes:
        rss_bytes: Resident memory.
        open_files: File descriptors.
        threads: Threads.
    """

    rss_bytes: int | None
    open_files: int | None
    threads: int | None


def read_usage(proc: Path = PROC_SELF) -> Usage:
    """Read proc(5); costs some 30 microseconds."""
    rss = threads = files = None
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                rss = int(line.split()[1]) * 1024
            elif line.startswith("Threads:"):
                threads = int(line.split()[1])
    with contextlib.suppress(OSError):
        files = len(os.listdir(proc / "fd"))
    return Usage(rss, files, threads)


def limit_open_files(most: int) -> int:
    """Lower this process's soft limit of open files to ``most`` (never above what it has); gives the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    have = hard if soft == resource.RLIM_INFINITY else soft
    wanted = most if have == resource.RLIM_INFINITY else min(most, have)
    if wanted != soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def give_memory_back() -> None:
    """Collect garbage and hand glibc's free memory back to the system (malloc_trim(3)); other C libraries do it alone.

    Imports and updates leave some megabytes behind that the process never needs again.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def few_arenas(most: int = 2) -> None:
    """At most so many of glibc's arenas (mallopt(3), ``M_ARENA_MAX``): each thread's own would keep what it freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, most)
