"""The number of workers that a configuration asks for, and the number of CPUs that this process may use."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from push1st.config.model import Config

MAX_WORKERS = 1024


def worker_count(config: Config) -> int:
    """Returns the number of workers of a configuration; `auto` is one worker for each CPU that this process may use."""
    return available() if config.server.workers == "auto" else config.server.workers


def available() -> int:
    """Returns the number of CPUs that this process may use, between 1 and `MAX_WORKERS`.

    The affinity of the process limits this number, and so do the quotas of its container or service (cgroup v2), rounded up.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(within_quota(Path("/"), count), MAX_WORKERS))


def within_quota(root: Path, count: int) -> int:
    """Returns `count`, or the CPU quota of this process if that is smaller.

    root: the folder that contains `proc` and `sys`.
    """
    for folder in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):  # the file does not exist, or contains `max`: no quota
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            count = min(count, math.ceil(quota / period))
    return count


def _control_groups(root: Path) -> Iterator[Path]:
    """Yields the folder of this process's control group, and the folders of all its parents. Each group may have a quota."""
    top = root / "sys/fs/cgroup"
    group = top
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/") and ".." not in line:
                group = top / line[4:]
    while group != top:
        yield group
        group = group.parent
    yield top
