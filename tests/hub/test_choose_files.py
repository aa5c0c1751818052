"""Which files of a repository make a model."""

import pytest

from shimmy.errors import BadRequest, NotFound
from shimmy.hub.choose_files import choose
from shimmy.hub.references import HubReference


def chosen(paths: str, tag: str = "", file: str = "") -> list[str]:
    return choose(dict.fromkeys(paths.split(), 10**9), HubReference("o", "n", tag, file=file))


@pytest.mark.parametrize(
    ("paths", "tag", "first"),
    [
        ("m-Q2_K.gguf m-Q4_K_M.gguf m-Q8_0.gguf", "", "m-Q4_K_M.gguf"),
        ("m-Q2_K.gguf m-Q8_0.gguf", "", "m-Q8_0.gguf"),
        ("m-F16.gguf m-Q2_K.gguf", "", "m-F16.gguf"),
        ("m.gguf", "", "m.gguf"),
        ("m-Q2_K.gguf m-Q4_K_M.gguf", "q2_k", "m-Q2_K.gguf"),
        ("m-Q2_K.gguf m-Q4_K_M.gguf", "latest", "m-Q4_K_M.gguf"),
        ("m-BF16.gguf m-F16.gguf", "F16", "m-F16.gguf"),
        ("m.Q5_K_S.gguf m.q5_k_m.gguf", "Q5_K_M", "m.q5_k_m.gguf"),
        ("m-IQ4_XS.gguf m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_M/m-00001-of-00002.gguf Q4_K_M/m-00002-of-00002.gguf", "Q4_K_M", "Q4_K_M/m-00001-of-00002.gguf"),
        ("imatrix.gguf mmproj-Q4_K_M.gguf mtp-Q4_K_M.gguf z.gguf", "", "z.gguf"),
    ],
)
def test_the_tag_or_the_usual_ones(paths: str, tag: str, first: str) -> None:
    assert chosen(paths, tag)[0] == first


def test_all_parts_in_order() -> None:
    parts = [f"d/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    others = "d/m-Q4_0-00001-of-00003.gguf e/m-Q8_0-00001-of-00003.gguf d/m-Q8_0-00001-of-00002.gguf"
    assert chosen(f"{others} {' '.join(reversed(parts))}", file=parts[0]) == parts
    with pytest.raises(NotFound, match="2 of the 3 parts"):
        chosen(" ".join(parts[:2]))


@pytest.mark.parametrize(
    ("projectors", "found"),
    [
        ("mmproj-F16.gguf mmproj-Q8_0.gguf", "mmproj-Q8_0.gguf"),  # the closest to the model's four bits
        ("mmproj-F32.gguf d/mmproj-F16.gguf", "d/mmproj-F16.gguf"),  # the nearest
        ("e/mmproj-F16.gguf", ""),  # of something else
        ("d/e/mmproj-F16.gguf", ""),
    ],
)
def test_the_projector_of_a_model(projectors: str, found: str) -> None:
    assert chosen(f"d/m-Q4_K_M.gguf {projectors}") == ["d/m-Q4_K_M.gguf", *filter(None, [found])]


def test_refusals_say_what_there_is() -> None:
    with pytest.raises(BadRequest, match=r"it has Q2_K \(1\.0 GB\), Q8_0 \(2\.0 GB\)"):
        chosen("m-Q2_K.gguf m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf mmproj.gguf", "Q3_K")
    with pytest.raises(NotFound, match=r"no `x\.gguf`"):
        chosen("m-Q2_K.gguf", file="x.gguf")
    with pytest.raises(NotFound, match="has no model"):
        chosen("README.md model.bin config.json")
    with pytest.raises(NotFound, match="has no model"):
        chosen("model.safetensors")
    with pytest.raises(BadRequest, match="leave the tag out"):
        chosen("model.safetensors config.json", "Q4_K_M")


def test_an_adapter_is_a_folder_too() -> None:
    assert chosen("adapter_config.json adapter_model.safetensors README.md") == [
        "adapter_model.safetensors", "adapter_config.json"
    ]  # fmt: skip
