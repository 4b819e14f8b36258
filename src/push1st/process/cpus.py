"""Computes the number of workers for a configuration, and the number of CPUs that this process may use."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from push1st.config.model import Config

MAX_WORKERS = 1024


def worker_count(config: Config) -> int:
    """Returns the number of workers for a configuration; `auto` stands for one worker on each CPU that this process may use."""
    return available() if config.server.workers == "auto" else config.server.workers


def available() -> int:
    """Returns the number of CPUs that this process may use, between 1 and `MAX_WORKERS`.

    The number is limited by the CPU affinity of the process, and by the CPU quotas of its container or service (cgroup v2).
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(within_quota(Path("/"), count), MAX_WORKERS))


def within_quota(root: Path, count: int) -> int:
    """Returns `count`, but at most the CPU quota of this process, rounded up to whole CPUs.

    root: the folder that contains `proc` and `sys`.
    """
    for folder in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):  # a missing file, or the text `max`, means that there is no quota
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            count = min(count, math.ceil(quota / period))
    return count


def _control_groups(root: Path) -> Iterator[Path]:
    """Yields the folders of this process's control group and of its parent groups, because each group may have a quota."""
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
