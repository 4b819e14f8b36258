"""The number of CPUs that a process may use."""

from pathlib import Path

from push1st.process.cpus import within_quota


def made(root: Path, group: str, quotas: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, quota in quotas.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota}\n")
    return root


def test_without_quotas_every_cpu_counts(tmp_path):
    root = made(tmp_path, "/a.slice/b.service", {"a.slice": "max 100000", "a.slice/b.service": "max 100000"})
    assert within_quota(root, 8) == 8


def test_the_quota_of_a_container_counts_rounded_up(tmp_path):
    assert within_quota(made(tmp_path, "/", {"": "150000 100000"}), 8) == 2


def test_lowest_quota_of_a_service_and_its_parents_counts(tmp_path):
    root = made(tmp_path, "/a.slice/b.service", {"a.slice": "300000 100000", "a.slice/b.service": "max 100000"})
    assert within_quota(root, 8) == 3


def test_without_control_groups_every_cpu_counts(tmp_path):
    assert within_quota(tmp_path, 8) == 8
