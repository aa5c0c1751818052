"""Schemathesis against /openapi.json: whatever is sent, valid or not, no server error comes back and nothing hangs.

Replies are those that are described, and what a schema does not take is refused. (That whatever it takes is accepted is
not asked: two fields may exclude each other, and a token id may be beyond a vocabulary.)

A minute of it belongs to the tests, with the same requests each time; SHIMMY_FUZZ_SECONDS asks for more, and for others
each time (`make fuzz-api`).
"""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import serving
from tests.tiny_models import write_tiny_model

SECONDS = int(os.environ.get("SHIMMY_FUZZ_SECONDS", "40"))
ARE_NEW_REQUESTS = "SHIMMY_FUZZ_SECONDS" in os.environ
REQUEST_TIMEOUT_S = 30
# Processes that ask at the same time. With `--workers 2` threads of one would, which parse Python at the same time, and
# that fails with Python 3.11 now and then ("AST constructor recursion depth mismatch").
N_AT_ONCE = 2
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "unsupported_method"),
)


@pytest.mark.timeout(SECONDS + 120)
def test_no_server_error_and_no_hang(tmp_path: Path) -> None:
    # A model that fills its context in no time, for requests that name any model, or none.
    write_tiny_model(tmp_path, "tiny")
    with serving(tmp_path / "server", "--model-path", tmp_path, "--default-model", "tiny") as server:
        command: list[str | Path] = [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url.removesuffix('/v1')}/openapi.json",
            "--max-time", str(SECONDS), "--request-timeout", str(REQUEST_TIMEOUT_S),
            "--exclude-path", "/api/events",  # it has no end
            "--exclude-path", "/api/models/pull",  # it asks other machines
            "--exclude-path", "/api/models/{model}",  # it deletes the model
            "--checks", ",".join(CHECKS), "--generation-database", "none", "--no-color", "--workers", "1",
        ]  # fmt: skip

        def run(process: int) -> subprocess.CompletedProcess[str]:
            seed = random.SystemRandom().getrandbits(32) if ARE_NEW_REQUESTS else process
            return subprocess.run(
                [*command, "--seed", str(seed)], cwd=tmp_path, capture_output=True, text=True, check=False
            )

        with ThreadPoolExecutor(N_AT_ONCE) as pool:
            for result in pool.map(run, range(N_AT_ONCE)):
                assert result.returncode == 0, result.stdout + result.stderr
        assert server.get("/health").status == 200
        assert server.chat("Still there?", "tiny", max_tokens=4)
