"""Nobody waits for the largest and oddest bodies of others. `tests.bench.pauses` prints the true figures."""

import pytest

from tests.bench.pauses import measure
from tests.e2e.harness import Server
from tests.e2e.processes import PATIENCE
from tests.hostile_bodies import HOSTILE_BODIES

pytestmark = pytest.mark.alone

# Five times what a server may hold its event loop: other processes take their part of the machine while this is tested.
LIMIT_MS = 250.0 * PATIENCE
N_TRIES = 3

NAMES = (
    *("1,000,000 token ids", "one text", "one text, 128 choices", "unicode escapes", "emoji", "text with one emoji"),
    *("zeros", "256 prompts", "5,000 messages", "450,000 messages", "one large message", "1,200,000 biases"),
    *("a large name", "a large schema", "template arguments", "a value of a wrong kind", "response of items"),
    *("empty objects", "equal names", "a long name", "short texts", "long numbers", "one number", "space"),
    *("wrong at the end", "deep arrays", "tokenize", "detokenize", "streamed candidates", "description"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_body_keeps_nobody_waiting(server: Server, name: str) -> None:
    body = HOSTILE_BODIES[name]
    pauses: list[float] = []
    while len(pauses) < N_TRIES and not (pauses and pauses[-1] <= LIMIT_MS):
        pauses.append(measure(server.url, "alpha", {name: body}, quiet_s=0.1, tell=lambda _: None)[name].server)
    assert min(pauses) <= LIMIT_MS
    assert server.get("/health").status == 200
