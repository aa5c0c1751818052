"""What hundreds of requests leave behind in the server and in its worker: nothing."""

from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import Server
from tests.e2e.processes import anonymous_kib, wait_for

N_WARM, N_REQUESTS = 600, 1400
# Pools that fill up until some 2,000 requests are done add 370 KiB; a kilobyte kept of each request would be 800.
LIMIT_KIB = 600


def n_open_files(pids: tuple[int, int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def ask(server: Server, number: int) -> None:
    """One short request of four kinds; every one has its own prompt and its own connection."""
    prompt = f"hello {number}"
    match number % 4:
        case 0:
            server.chat(prompt, max_tokens=4)
        case 1:
            server.stream(prompt, max_tokens=4).finish()
        case 2:
            server.stream(prompt, max_tokens=None).read(1).leave()
        case _:
            assert server.post("/v1/completions", {"model": "alpha", "prompt": prompt, "top_k": "all"}).status == 400


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_hundreds_of_requests_leave_the_memory_flat(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without huge pages, which the worker's malloc else asks for: one of them would look like a leak of 2 MiB.
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0:glibc.malloc.mmap_threshold=4194304")
    server = start()
    server.chat("hello")
    pids = server.pid, server.worker()
    n_files = n_open_files(pids)
    for number in range(N_WARM):
        ask(server, number)
    before = [anonymous_kib(pid) for pid in pids]
    for number in range(N_WARM, N_REQUESTS):
        ask(server, number)
    server.wait_until_idle("alpha")
    growth = [anonymous_kib(pid) - kib for pid, kib in zip(pids, before, strict=True)]
    assert max(growth) < LIMIT_KIB
    wait_for("every connection to be closed", lambda: n_open_files(pids) <= n_files)
