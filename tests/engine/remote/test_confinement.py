"""What a process that computes for another machine cannot do any more."""

import subprocess
import sys

import pytest

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


def test_no_file_and_no_connection_is_opened_any_more() -> None:
    ended = subprocess.run([sys.executable, "-c", GIVES_UP], capture_output=True, text=True, check=True)
    is_whole, opens, connects, opens_in_thread = ended.stdout.split()
    if is_whole == "False":
        pytest.skip("this kernel has no Landlock, or one without a network")
    assert (opens, connects, opens_in_thread) == ("False", "False", "False")
