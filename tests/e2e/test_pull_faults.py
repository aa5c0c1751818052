"""Pulls by the program itself through lines and servers that fail: the right bytes in the end, or a clear error."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.e2e.test_pull import NAME, pull, variables
from tests.hub.servers import FakeHub, Fault

N_CUTS = 100


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_a_hundred_cuts_busy_replies_and_expired_links_end_in_the_right_bytes(tmp_path: Path) -> None:
    random = Random(11)
    content = b"GGUF" + random.randbytes(100 << 20)
    hub = FakeHub({NAME: {"tiny.gguf": content}})
    busy = [
        *[Fault(status=502)] * 3,
        *[Fault(status=429, headers={"Retry-After": "1"})] * 3,
        *[Fault(status=503, headers={"Retry-After": "0"})] * 3,
    ]
    faults = [*[Fault(cut_after=random.randrange(1, 700_000)) for _ in range(N_CUTS)], *busy]
    random.shuffle(faults)
    hub.faults.extend([Fault(), *faults])
    hub.link_uses = 20  # then it has expired, and is answered with 403
    with hub.running():
        result = pull(tmp_path, variables(tmp_path, hub), NAME, timeout_s=230)
    assert result.returncode == 0, result.stderr
    assert not hub.faults
    path = Path(result.stdout.strip())
    assert path.read_bytes() == content
    assert not [left for left in tmp_path.rglob("*.shimmy.*") if "locks" not in str(left)]


@pytest.fixture
def small() -> Iterator[FakeHub]:
    hub = FakeHub({NAME: {"tiny.gguf": b"GGUF" + Random(1).randbytes(5_000_000)}})
    with hub.running():
        yield hub


@pytest.mark.parametrize(
    ("fault", "redirect", "says"),
    [
        (Fault(body=b"GGUFwrong"), "", "has not the digest that it should have"),
        (Fault(content_range="bytes 0-5000003/77"), "", "another `tiny.gguf`"),
        (Fault(status=451), "", "451"),
        (Fault(), "file:///etc/passwd", "is not followed"),
        (Fault(), "ftp://localhost/tiny.gguf", "is not followed"),
    ],
)
def test_what_is_wrong_is_an_error_and_never_served(
    small: FakeHub, tmp_path: Path, fault: Fault, redirect: str, says: str
) -> None:
    small.faults.extend([Fault(), *[fault] * 60])
    small.redirect = redirect
    result = pull(tmp_path, variables(tmp_path, small), NAME)
    assert (result.returncode, result.stdout) == (1, "")
    assert says in result.stderr.splitlines()[-1]
    assert not [*tmp_path.rglob("*.gguf")]
