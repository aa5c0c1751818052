"""A real model in SafeTensors says, token for token, what a GGUF of the same weights says that llama.cpp made."""

from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, Server
from tests.models import demo_model
from tests.smollm2_folder import write_as, write_smollm2_folder

N_PROMPTS, N_TOKENS = 20, 64
F32, BF16 = 0, 32  # llama_ftype
SUBJECTS = ("fox", "sea", "city", "clock", "garden", "train", "letter", "bridge", "storm", "violin")
PROMPTS = [f"{how} the {what}" for what in SUBJECTS for how in ("Write a story about", "List five facts about")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GGUFs by llama.cpp, and folders with the same weights."""
    folder = tmp_path_factory.mktemp("smollm2")
    made = write_as(F32, demo_model(), folder / "made-f32.gguf")
    write_as(BF16, made, folder / "made-bf16.gguf")
    write_smollm2_folder(folder / "folder-f32", made)
    write_smollm2_folder(folder / "folder-shards", made, n_shards=3)
    write_smollm2_folder(folder / "folder-bf16", made, dtype="BF16")
    return folder


def answers(server: Server, model: str, n_prompts: int = N_PROMPTS) -> list[str]:
    """One after the other: the shape of a batch decides near-ties."""
    texts = []
    for prompt in PROMPTS[:n_prompts]:
        body = {"model": model, "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True}
        reply = server.post(COMPLETION, body)
        assert reply.status == 200, reply.body
        texts.append(reply.json()["choices"][0]["text"])
    return texts


@pytest.mark.frozen  # it takes a minute, and one run of it says enough
@pytest.mark.alone  # with a thread for each processor, which stand still while others use one
@pytest.mark.timeout(900)
def test_greedy_tokens_are_those_of_a_gguf_made_by_llama_cpp(start: StartServer, folder: Path, tmp_path: Path) -> None:
    assert len(PROMPTS) == N_PROMPTS
    server = start("--model-path", folder, "--cache-dir", tmp_path / "cache", "--no-speculation", threads="")
    expected = answers(server, "made-f32")
    assert len(set(expected)) > N_PROMPTS / 2
    assert answers(server, "folder-f32") == expected
    assert answers(server, "folder-shards", 3) == expected[:3]
    assert answers(server, "folder-bf16") == answers(server, "made-bf16")
    for name in ("made-f32", "folder-f32"):
        text = "naïve café 🦊 12345\t<|im_end|>"
        tokens = server.post("/tokenize", {"model": name, "content": text}).json()["tokens"]
        assert tokens == server.post("/tokenize", {"model": "made-bf16", "content": text}).json()["tokens"]
