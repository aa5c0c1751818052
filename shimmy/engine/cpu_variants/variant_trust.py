"""Which CPU variants have shown that they compute correctly on this machine.

Flags of a processor promise more than some machines keep: a build may be wrong, a hypervisor, an emulator or a kernel
may hold registers or instructions back. So a variant is tried in a child process before a worker uses it
(`variant_check`), and what came out is remembered for this processor, kernel and library. Knows processes and verdicts;
nothing of what is computed.
"""

import hashlib
import json
import logging
import os
import resource
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from shimmy.engine.cpu_variants.variants import processor_flags
from shimmy.errors import ModelUnavailable
from shimmy.system import cpu
from shimmy.system.remembered import Remembered

# A check takes 0.03 s of processor time; an emulator takes a hundred times as long.
_CPU_TIME_S = 20
_WAIT_S = 30.0
# A child begins in the middle of what other threads of the worker do, and may stumble over that; hardly twice.
_N_TRIES = 2
_MAX_VERDICT_BYTES = 4096

logger = logging.getLogger(__name__)

Check = Callable[[str], "str | None"]


def _check(path: str) -> str | None:
    from shimmy.engine.cpu_variants import variant_check  # a worker that remembers needs none of it

    return variant_check.check(path)


class TrustedVariants:
    """Iterates over those of `libraries` (name and path, best first) that compute correctly. The others are left out,
    or refused with ModelUnavailable where a person has forced the variant."""

    def __init__(
        self,
        libraries: Iterable[tuple[str, str]],
        cache_dir: Path | None,
        *,
        is_forced: bool = False,
        check: Check = _check,
    ) -> None:
        self._libraries = libraries
        self._memory = Remembered(cache_dir, "variants.json")
        self._is_forced = is_forced
        self._check = check
        self.passed_over: dict[str, str] = {}  # by name: what is wrong with it here

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name, path in self._libraries:
            fault = self._fault(name, path)
            if not fault:
                yield name, path
            elif self._is_forced:
                raise ModelUnavailable(
                    f"the CPU variant `{name}`, which `--cpu-variant` forces, does not work on this machine: {fault}"
                )
            else:
                self.passed_over[name] = fault

    @property
    def note(self) -> str:
        """For a person: which variants were left out, and why; empty where none was."""
        return "; ".join(f"`{name}` is passed over: {fault}" for name, fault in self.passed_over.items())

    def _fault(self, name: str, path: str) -> str:
        key = _identity(path)
        verdict = self._memory.get(key)
        if isinstance(verdict, str):
            return verdict
        verdict, is_certain = self._tried(path)
        if verdict:
            logger.warning("the CPU variant `%s` does not work on this machine: %s", name, verdict)
        if is_certain:
            self._memory.put(key, verdict)
        return verdict

    def _tried(self, path: str) -> tuple[str, bool]:
        """What is wrong with the variant at `path`, and whether that is certain: another try would find the same."""
        fault, is_certain = "", True
        for _ in range(_N_TRIES):
            fault, is_certain = _in_a_child(self._check, path)
            if is_certain and not fault:
                break
        return fault, is_certain


def _identity(path: str) -> str:
    """What a verdict depends on."""
    with Path(path).open("rb") as library:
        digest = hashlib.file_digest(library, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    flags = sorted(processor_flags() or ())
    machine_digest = hashlib.blake2b(" ".join(flags).encode(), digest_size=8).hexdigest()
    return json.dumps([cpu.processor_name(), machine_digest, os.uname().release, digest])


def _in_a_child(check: Check, path: str) -> tuple[str, bool]:
    """The verdict of `check` on `path`, or how its process ended; and whether that is certain.

    A copy of this process, which needs no start: the check is over in a third of the time that a new one would take.
    """
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError as exc:
        os.close(reading)
        os.close(writing)
        logger.warning("CPU variants are used unchecked: no process can be started: %s", exc.strerror)
        return "", False
    if not pid:
        _be_the_child(check, path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as verdict:
        has_ended, _, _ = select.select([verdict], [], [], _WAIT_S)
        if not has_ended:
            os.kill(pid, signal.SIGKILL)
        text = os.read(verdict.fileno(), _MAX_VERDICT_BYTES) if has_ended else b""
    _, status = os.waitpid(pid, 0)
    if not has_ended:
        return f"its check did not end within {_WAIT_S:g} s", False
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return text.decode("utf-8", "replace"), True
    if code == -signal.SIGXCPU:
        return "its check did not come to an end", True
    return f"its check died of {_signal_name(-code)}" if code < 0 else "its check failed", True


def _be_the_child(check: Check, path: str, writing: int) -> NoReturn:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what it dies of is expected
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_TIME_S, _CPU_TIME_S + 1))
        os.write(writing, (check(path) or "").encode()[:_MAX_VERDICT_BYTES])
        code = 0
    finally:
        os._exit(code)


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
