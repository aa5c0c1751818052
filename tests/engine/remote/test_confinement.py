"""What a process that computes for another machine cannot do any more."""

import subprocess
import sys
import time

import pytest

from tests.e2e.processes import command_line, wait_for

GIVES_UP = """
import socket, threading
from shimmy.engine.remote import confinement
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
is_whole = confinement.give_up_files_and_network()

def tries(what):
    try:
        what()
    except OSError:
        return False
    return True

def in_thread():
    found.append(tries(lambda: open("/etc/passwd")))

found = [is_whole, tries(lambda: open("/etc/passwd"))]
found.append(tries(lambda: socket.create_connection(listener.getsockname(), 5)))
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
print(*found)
"""
ENDS_WITH = """
import subprocess, sys, time
child = "import os, sys, time; from shimmy.engine.remote import confinement; " \\
    "confinement.end_with(int(sys.argv[1])); print('here', flush=True); time.sleep(60)"
import os
started = subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE)
started.stdout.readline()
print(started.pid, flush=True)
time.sleep(60)
"""


def test_no_file_and_no_connection_is_opened_any_more() -> None:
    ended = subprocess.run([sys.executable, "-c", GIVES_UP], capture_output=True, text=True, check=True)
    is_whole, opens, connects, opens_in_thread = ended.stdout.split()
    if is_whole == "False":
        pytest.skip("this kernel has no Landlock, or one without a network")
    assert (opens, connects, opens_in_thread) == ("False", "False", "False")


def test_it_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDS_WITH], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert command_line(child)
        parent.kill()
    wait_for("the child's end", lambda: not any(command_line(child)))


def test_one_whose_parent_has_gone_before_ends_at_once() -> None:
    code = "import time; from shimmy.engine.remote import confinement; confinement.end_with(1); time.sleep(60)"
    began_s = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert time.monotonic() - began_s < 30
