"""Each golden family as a person serves it: its log-probabilities and vectors over HTTP are those of `transformers`.

tests/golden/README.md says what is recorded. Both are compared: what the program computes by default, and what it
computes exactly, with weights and KV cache in F32.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import COMPLETION, Json, Server, serving
from tests.golden.tolerances import tolerance
from tests.golden.weights import byte_level_texts, families, golden, makes_embeddings, write_folder

N_TOP = 20  # as many candidates of a token as the server tells
EXACTLY = ("--safetensors-type", "f32", "--kv-type", "f32")
# Flash attention sums in F16 where fewer rows are computed at once; this family cannot do without. A decode of a prompt
# with log-probabilities has no more rows than there may be jobs.
N_ROWS, NEEDS_ROWS = 64, "minimax-m3"
ENCODERS = [family for family in families() if makes_embeddings(family)]
DECODERS = [family for family in families() if not makes_embeddings(family)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all families."""
    folder = tmp_path_factory.mktemp("golden")
    for family in families():
        write_folder(family, folder / family, "5")
    return folder


@pytest.fixture(scope="module")
def server(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--model-path", folders) as running:
        yield running


@pytest.fixture(scope="module")
def exact_server(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--model-path", folders, *EXACTLY, "--parallel", str(N_ROWS))
    with serving(tmp_path_factory.mktemp("exact"), *options) as running:
        yield running


def test_every_family_is_served(server: Server) -> None:
    entries = server.get("/api/models").json()["models"]
    assert {entry["name"]: entry["error"] for entry in entries} == dict.fromkeys(families())


def echoed(server: Server, family: str, prompts: Sequence[Sequence[int]], n_top: int, **fields: object) -> list[Json]:
    """What is told of the tokens of each prompt."""
    body = {"model": family, "prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": n_top, **fields}
    reply = server.post(COMPLETION, body)
    assert reply.status == 200, reply.body
    return [choice["logprobs"] for choice in reply.json()["choices"]]


def differences(server: Server, family: str, *, n_rows: int = 0) -> Iterator[float]:
    """Of recorded log-probabilities from the server's: of the candidates at each position, and of all tokens that are
    recorded behind a prompt, each of which is told where it follows the prompt. Behind these come as many others as
    make `n_rows`."""

    def lengthened(prompt: Json, index: int) -> list[int]:
        tokens = [*prompt["tokens"], prompt["fixed"][index]]
        return tokens + [0] * (n_rows - len(tokens))

    # A token that only the embeddings have is no text, and so has no name in a reply.
    names = dict(enumerate(map(in_reply, byte_level_texts(golden(family)["n_tokens"]))))
    n_ctx = server.get(f"/api/models/{family}/status").json()["n_ctx_train"]
    prompts = [prompt for prompt in golden(family)["prompts"] if len(prompt["tokens"]) < n_ctx]
    assert prompts
    longer = [lengthened(prompt, 0) for prompt in prompts]
    for prompt, told in zip(prompts, echoed(server, family, longer, N_TOP), strict=True):
        for row in prompt["rows"]:
            found = told["top_logprobs"][row["position"] + 1]
            wanted = dict(zip([*row["top"], *prompt["fixed"]], row["log_probs"], strict=True))
            named = {names[token]: log_prob for token, log_prob in wanted.items() if token in names}
            assert {names[token] for token in row["top"] if token in names} <= found.keys()
            yield from (abs(found[name] - named[name]) for name in named.keys() & found.keys())
    behind = [(prompt, index) for prompt in prompts for index in range(len(prompt["fixed"]))]
    longer = [lengthened(prompt, index) for prompt, index in behind]
    for (prompt, index), told in zip(behind, echoed(server, family, longer, 0, keep_alive=0), strict=True):
        row = prompt["rows"][-1]
        assert row["position"] == len(prompt["tokens"]) - 1
        found = told["token_logprobs"][len(prompt["tokens"])]
        yield abs(found - row["log_probs"][len(row["top"]) + index])


def in_reply(data: bytes) -> str:
    """A token as completions name it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@pytest.mark.parametrize("family", DECODERS)
def test_log_probabilities_are_those_of_transformers(server: Server, family: str) -> None:
    assert max(differences(server, family)) < tolerance(family)


@pytest.mark.parametrize("family", DECODERS)
def test_exact_log_probabilities_are_those_of_transformers(exact_server: Server, family: str) -> None:
    n_rows = N_ROWS if family == NEEDS_ROWS else 0
    assert max(differences(exact_server, family, n_rows=n_rows)) < tolerance(family, exact=True)


@pytest.mark.parametrize("family", ENCODERS)
def test_vectors_are_those_of_transformers(server: Server, family: str) -> None:
    prompts = golden(family)["prompts"]
    body = {"model": family, "input": [prompt["tokens"] for prompt in prompts], "keep_alive": 0}
    reply = server.post("/v1/embeddings", body)
    assert reply.status == 200, reply.body
    for prompt, item in zip(prompts, reply.json()["data"], strict=True):
        ours, theirs = item["embedding"], prompt["vector"]
        assert max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) < 2e-3
        assert sum(x * y for x, y in zip(ours, theirs, strict=True)) > 0.99999
