"""How much memory a process had at most, for the benchmarks."""

import re
from pathlib import Path


def peak_bytes() -> int:
    """Most bytes this process ever had in memory (Linux); getrusage would count the parent's before the start."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("this system does not tell the peak memory of a process in /proc/self/status")
    return int(found[1]) * 1024
