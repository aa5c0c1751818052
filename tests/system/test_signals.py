"""Signals that are ignored from some moment on, while they keep coming."""

import signal
import subprocess
import sys
from contextlib import suppress

# Ignores the signal as a command does that it interrupts, and takes it again, `n_rounds` times.
INTERRUPTED = """
import signal, sys, time
from shimmy.system.signals import ignore

def interrupt(number, _frame):
    ignore(number)
    raise KeyboardInterrupt

n_rounds = int(sys.argv[1])
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("here", flush=True)
n_taken = 0
while n_taken < n_rounds:
    try:
        signal.signal(signal.SIGINT, interrupt)
        time.sleep(60)
    except KeyboardInterrupt:
        n_taken += 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
print(n_taken)
"""


def test_signals_that_come_while_the_handler_changes_are_no_error() -> None:
    command = [sys.executable, "-c", INTERRUPTED, "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        while process.poll() is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"20000\n", b"")
