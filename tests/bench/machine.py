"""What the benchmark runs on, as `/proc` tells it, and how busy others keep it."""

import os
import re
import time
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
STAT = Path("/proc/stat")
LOOK_S = 1.0


def n_cores() -> int:
    """Physical cores: hyper-threads of one core share its number."""
    cpus = CPUINFO.read_text()
    packages, cores = re.findall(r"physical id\s*: (\d+)", cpus), re.findall(r"core id\s*: (\d+)", cpus)
    return len(set(zip(packages, cores, strict=True))) or os.cpu_count() or 1


def description() -> str:
    model = re.search(r"model name\s*: (.*)", CPUINFO.read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", MEMINFO.read_text())
    gib = round(int(memory[1]) / 2**20) if memory else 0
    return f"{model[1] if model else 'unknown processor'}, {n_cores()} cores, {gib} GiB"


def busy_percent() -> int:
    """How much of all processors is in use while the benchmark itself only waits."""
    idle_before, all_before = _processor_time()
    time.sleep(LOOK_S)
    idle_after, all_after = _processor_time()
    return round(100 - 100 * (idle_after - idle_before) / max(1, all_after - all_before))


def _processor_time() -> tuple[int, int]:
    """Idle ticks (with those waiting for a disk), and all ticks."""
    ticks = [int(number) for number in STAT.read_text().partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
