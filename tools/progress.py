"""A long compilation told while it runs: all of its output goes to a log, how far it is to the person who waits.

Knows the steps that ninja and make count; nothing of what is compiled.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tools.steps import say

STEP = re.compile(rb"\s*\[\s*(\d+)(?:/(\d+)|%)\]")  # ninja's `[12/330]`, make's `[ 12%]`
REPORT_INTERVAL_S = 20.0


def compile_with_progress(
    name: str, command: Sequence[str | Path], log: BinaryIO, environment: Mapping[str, str]
) -> int:
    """Run `command`, which compiles what is called `name`, to its end; returns its exit code.

    The variables of `environment` are added to ours.
    """
    progress = _Progress(name)
    with subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as build:  # fmt: skip
        assert build.stdout is not None
        for line in build.stdout:
            log.write(line)
            progress.read(line)
    log.flush()
    return build.returncode


class _Progress:
    """Turns steps into one changing line on a terminal, and into a line now and then elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start_s = self.last_s = time.monotonic()
        self.is_terminal = sys.stderr.isatty()

    def read(self, line: bytes) -> None:
        step = STEP.match(line)
        now_s = time.monotonic()
        if step is None or (now_s - self.last_s < REPORT_INTERVAL_S and not self.is_terminal):
            return
        self.last_s = now_s
        n_done, n_all = int(step[1]), int(step[2] or 100)
        minutes, seconds = divmod(int(now_s - self.start_s), 60)
        text = f"{self.name}: {100 * n_done // n_all} %, {minutes}:{seconds:02} min"
        if self.is_terminal:
            print(f"\r{text}", end="\n" if n_done == n_all else "", file=sys.stderr, flush=True)
        else:
            say(text)
