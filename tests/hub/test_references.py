"""What people write to name a model elsewhere."""

import pytest

from shimmy.errors import BadRequest
from shimmy.hub.references import HubReference, OllamaReference, Reference, UrlReference, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Owner/Name", HubReference("Owner", "Name")),
        ("hf.co/Owner/Name:Q4_K_M", HubReference("Owner", "Name", "Q4_K_M")),
        ("HuggingFace.co/Owner/Name:q4_k_m", HubReference("Owner", "Name", "q4_k_m")),
        (" o/n@v1.0:Q8_0 ", HubReference("o", "n", "Q8_0", "v1.0")),
        ("o/n:sub/m-00001-of-00002.gguf", HubReference("o", "n", file="sub/m-00001-of-00002.gguf")),
        ("https://huggingface.co/o/n", HubReference("o", "n")),
        ("https://hf.co/o/n:Q4_0", HubReference("o", "n", "Q4_0")),
        ("https://huggingface.co/o/n/tree/main", HubReference("o", "n")),
        ("https://huggingface.co/o/n/blob/main/a%20b.gguf", HubReference("o", "n", file="a b.gguf")),
        ("https://huggingface.co/o/n/resolve/v2/d/m.gguf?download=true", HubReference("o", "n", "", "v2", "d/m.gguf")),
        ("http://mirror:8080/hub/o/n/resolve/main/m.gguf", HubReference("o", "n", file="m.gguf")),
        ("ollama:llama3.2", OllamaReference("library", "llama3.2", "latest")),
        ("ollama:me/mine:1b", OllamaReference("me", "mine", "1b")),
        ("registry.ollama.ai/library/llama3.2:1b", OllamaReference("library", "llama3.2", "1b")),
        ("https://ollama.com/library/llama3.2", OllamaReference("library", "llama3.2", "latest")),
        ("https://x.org/d/m.gguf?a=b", UrlReference("https://x.org/d/m.gguf?a=b", "m.gguf")),
        (f"http://x/M.GGUF#sha256={'A' * 64}", UrlReference("http://x/M.GGUF", "M.GGUF", "a" * 64)),
    ],
)
def test_references(text: str, found: Reference) -> None:
    assert parse(text, "http://mirror:8080/hub") == found


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "name", "name:tag", "a/b/c", "../b", "a/..", "a/b:", "a/b:x/y", "a/b@", "a/b@../x", "a/b@%2e%2e",
        "a--b/c", "a/b c", "a/b\nc", "a/b\x00", "-a/b", "a" * 2000, "ollama:", "ollama:a/b/c", "ollama:a:b:c",
        "ollama:../b", "https://x.org/m.bin", "https://x.org/", "https:///m.gguf", "https://u:p@x.org/m.gguf",
        "https://x.org:99999999/m.gguf",
        "https://x.org/..%2f..%2fm.gguf/..", "https://x.org/a%2f..gguf%00", "https://x.org/m.gguf#sha256=12",
        "ftp://x/m.gguf",
        "file:///m.gguf", "https://huggingface.co/o/n/resolve/main/x.txt",
        "https://huggingface.co/datasets/o/n/blob/main/m.gguf",
        "https://huggingface.co/o/n/resolve/..%2f/m.gguf",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text)


@pytest.mark.parametrize("text", ["llama3", "llama3.2:1b"])
def test_a_name_of_ollamas_is_told_how_it_is_written(text: str) -> None:
    with pytest.raises(BadRequest, match=f"`ollama:{text}` does"):
        parse(text)
    parse(f"ollama:{text}")


@pytest.mark.parametrize("text", ["modelscope.cn/foo/bar", "ghcr.io/o/n:tag"])
def test_another_place_is_named_and_those_that_there_are(text: str) -> None:
    with pytest.raises(BadRequest, match=rf"`{text.partition('/')[0]}` is no place .* hf\.co and registry\.ollama\.ai"):
        parse(text)
