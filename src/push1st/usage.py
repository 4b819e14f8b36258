"""The resources that a process uses, as metrics with the standard names that dashboards expect. Only Linux has these figures."""

from push1st.exposition import Family, escape

NAMES = {
    "process_cpu_seconds",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}


def families(process: str, pid: int | None = None) -> list[Family]:
    """Returns the metrics of a process; none if the process has ended, or the system has no such figures.

    process: the value of the label `process`, such as `worker`.
    pid: the number of the process; None for this process.
    """
    from prometheus_client import ProcessCollector  # imported here: only a scrape needs the library

    labels = f'process="{escape(process)}"'
    return [
        Family(
            one.name,
            "counter" if one.type == "counter" else "gauge",
            one.documentation,
            [(sample.name.removeprefix(one.name), labels, sample.value) for sample in one.samples],
        )
        for one in ProcessCollector(pid=lambda: pid or "self", registry=None).collect()
        if one.name in NAMES
    ]
