"""A process that does not outlive the one that started it."""

import subprocess
import sys
import time

from tests.e2e.processes import command_line, wait_for

ENDS_WITH = """
import os, subprocess, sys, time
child = "import sys, time; from shimmy.system.parent_process import end_with; " \\
    "end_with(int(sys.argv[1])); print('here', flush=True); time.sleep(60)"
started = subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE)
assert started.stdout.readline() == b"here\\n"
print(started.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDS_WITH], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert command_line(child)
        parent.kill()
    wait_for("the child's end", lambda: not any(command_line(child)))


def test_one_whose_parent_has_gone_before_ends_at_once() -> None:
    code = "import os, time; from shimmy.system.parent_process import end_with; end_with(os.getpid()); time.sleep(60)"
    began_s = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert time.monotonic() - began_s < 30
