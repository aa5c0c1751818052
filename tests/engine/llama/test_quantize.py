"""The types that weights can be converted to: each is one that the engine makes without more than the weights."""

from pathlib import Path
from random import Random

import pytest

from shimmy.engine.llama.quantize import FILE_TYPES, quantize
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import reader
from shimmy.wire.worker_options import SAFETENSORS_TYPES
from tests.tiny_checkpoints import LLAMA_CONFIG, random_weights, write_checkpoint, write_tokenizer

WIDTH = 256  # of a block of the K types


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer whose rows are as long as the longest blocks."""
    folder, random = tmp_path_factory.mktemp("wide"), Random(0)
    shapes = {
        "model.embed_tokens": (LLAMA_CONFIG["vocab_size"], WIDTH), "model.norm": (WIDTH,),
        "model.layers.0.input_layernorm": (WIDTH,), "model.layers.0.post_attention_layernorm": (WIDTH,),
        **{f"model.layers.0.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
        **{f"model.layers.0.mlp.{name}_proj": (WIDTH, WIDTH) for name in ("gate", "up", "down")},
    }  # fmt: skip
    config = LLAMA_CONFIG | {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "tie_word_embeddings": True
    }  # fmt: skip
    tensors = {f"{name}.weight": random_weights(random, shape) for name, shape in shapes.items()}
    write_checkpoint(folder / "model", config, tensors)
    write_tokenizer(folder / "model")
    convert(folder / "model", folder / "model.gguf", lambda _: None)
    return folder / "model.gguf"


def test_both_tables_have_the_same_types() -> None:
    assert FILE_TYPES.keys() == SAFETENSORS_TYPES.keys()


@pytest.mark.parametrize("name", SAFETENSORS_TYPES)
def test_every_type_is_made(name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    quantize(source, target, file_type=name, n_threads=1)
    header = reader.read_header(target)
    assert header.quantization == name.upper()
    # Embeddings and the parts of a tiny model that are made larger weigh more here than in a model.
    assert 0.6 < 8 * header.size_bytes / header.n_params / SAFETENSORS_TYPES[name] < 1.5
