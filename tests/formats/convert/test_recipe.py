"""Each family of models: its tensors arrive where the engine wants them, and what it cannot compute is not served."""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert import convert
from shimmy.formats.convert.convert import ConversionPlan, plan, prepared
from shimmy.formats.convert.converted import cache_name
from shimmy.formats.convert.recipe import text_config
from shimmy.formats.convert.transforms import chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import reader as gguf
from shimmy.formats.gguf.header import Array
from shimmy.formats.gguf.writer import GgufType, Metadata
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors, TensorReader
from tests import tiny_families
from tests.tiny_checkpoints import Weights, encode_safetensors, random_weights, write_checkpoint
from tests.tiny_models import vocabulary

FAMILIES = tuple(tiny_families.CONFIGS)
DECODERS = tuple(name for name in FAMILIES if name not in tiny_families.ENCODERS)


def ignore(share: float) -> None:
    """Progress that nobody looks at."""
    assert 0 <= share <= 1


def folder_of(
    path: Path,
    model_type: str,
    changes: Mapping[str, Any] | None = None,
    *,
    dtype: str = "F32",
    tensors: Mapping[str, Weights] | None = None,
) -> Path:
    """A tiny checkpoint of a family, with other values in its config.json, or other tensors."""
    config = tiny_families.config(model_type) | dict(changes or {})
    return write_checkpoint(path / model_type, config, tensors or tiny_families.tensors(model_type, dtype))


def metadata(found: ConversionPlan) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, _, value in found.recipe.metadata}


def data(found: ConversionPlan, name: str) -> bytes:
    """The bytes of one tensor, as they would be written."""
    (output,) = [output for output in found.recipe.outputs if output.info.name == name]
    with TensorReader() as reader:
        return b"".join(bytes(chunk) for chunk in chunks(output, reader))


def numbers(content: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(content) // 4}f", content)


def reason(path: Path, model_type: str, changes: Mapping[str, Any]) -> str:
    with pytest.raises(Unconvertible) as caught:
        plan(folder_of(path, model_type, changes))
    return str(caught.value)


# -- tensors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def sentencepiece(folder: Path, config: Mapping[str, Any]) -> Metadata:
    """The tiny vocabulary, whatever the family would have."""
    del folder, config
    tokens = vocabulary()
    return [
        ("tokenizer.ggml.model", GgufType.STRING, "llama"),
        ("tokenizer.ggml.tokens", GgufType.ARRAY, (GgufType.STRING, [text for text, _ in tokens])),
        ("tokenizer.ggml.scores", GgufType.ARRAY, (GgufType.FLOAT32, [-float(index) for index in range(len(tokens))])),
        ("tokenizer.ggml.token_type", GgufType.ARRAY, (GgufType.INT32, [kind for _, kind in tokens])),
    ]


@pytest.mark.parametrize(
    "dtype", ["BF16", pytest.param("F32", marks=pytest.mark.thorough), pytest.param("F16", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_engine_takes_every_family(
    model_type: str, dtype: str, cpu: CpuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "vocabulary", sentencepiece)
    folder = folder_of(tmp_path, model_type, dtype=dtype)
    path = tmp_path / "made.gguf"
    found = convert.convert(folder, path, ignore)
    header = gguf.validate(path)
    is_encoder = model_type in tiny_families.ENCODERS
    assert (found.n_ctx_train, len(found.notices)) == (tiny_families.CONTEXT, int(is_encoder))
    assert (header.n_ctx_train, header.quantization) == (tiny_families.CONTEXT, dtype)
    assert header.is_embedding == found.is_embedding == is_encoder
    codes = {name: tensor.code for name, tensor in gguf.contents(path).tensors.items()}
    assert codes[b"token_embd.weight"] == {"F32": 0, "F16": 1, "BF16": 30}[dtype]
    always = ("_norm.weight", ".bias", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight")
    assert {code for name, code in codes.items() if name.decode().endswith(always)} == {0}
    model = LlamaModel(path, cpu)
    if model_type in DECODERS:
        model.open_context(n_ctx=256, n_batch=64, n_sequences=1, n_outputs=8, n_threads=1)
        model.backend.batch.clear()
        row = model.backend.batch.add([5, 6, 7, 300], 0, 0, n_outputs=1)
        assert model.backend.decode() == 0
        assert model.backend.has_numbers(row)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_single_numbers_of_all_layers_are_metadata(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "vocabulary", sentencepiece)
    tensors = tiny_families.tensors("apertus", dtype)
    encoded = {"F32": struct.pack("<f", 1.5), "BF16": struct.pack("<f", 1.5)[2:], "F16": struct.pack("<e", 1.5)}
    tensors["model.layers.1.mlp.act_fn.alpha_n"] = Weights((1,), encoded[dtype], dtype)
    convert.convert(folder_of(tmp_path, "apertus", tensors=tensors), tmp_path / "made.gguf", ignore)
    found = gguf.contents(tmp_path / "made.gguf").metadata[b"xielu.alpha_n"]
    assert isinstance(found, Array)
    assert (found.n_items, found.numbers[1]) == (tiny_families.LAYERS, 1.5)
    infinite = {"F32": struct.pack("<f", math.inf), "BF16": b"\x80\x7f", "F16": b"\0\x7c"}
    tensors["model.layers.1.mlp.act_fn.alpha_n"] = Weights((1,), infinite[dtype], dtype)
    with pytest.raises(Unconvertible, match="alpha_n"):
        convert.convert(folder_of(tmp_path / "2", "apertus", tensors=tensors), tmp_path / "other.gguf", ignore)
    del tensors["model.layers.1.mlp.act_fn.alpha_n"]
    with pytest.raises(Unconvertible, match=r"layers\.1\.mlp\.act_fn\.alpha_n"):
        plan(folder_of(tmp_path / "3", "apertus", tensors=tensors))


def test_rows_of_queries_and_keys_are_paired_within_each_head(tmp_path: Path) -> None:
    shape, n_rows = (64, 64), 64
    tensors = tiny_families.tensors("mistral")
    rows = [struct.pack("<f", float(row)) * 64 for row in range(n_rows)]
    tensors["model.layers.0.self_attn.q_proj.weight"] = Weights(shape, b"".join(rows))
    found = plan(folder_of(tmp_path, "mistral", tensors=tensors))
    first = [int(number) for number in numbers(data(found, "blk.0.attn_q.weight"))[::64]]
    expected = [head * 16 + half * 8 + pair for head in range(4) for pair in range(8) for half in range(2)]
    assert first == expected


def test_biases_of_queries_and_keys_are_paired_too(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("llama", "BF16")
    found = plan(folder_of(tmp_path, "llama", tensors=tensors))
    source = tensors["model.layers.1.self_attn.k_proj.bias"].data
    wide = [source[start : start + 2] for start in range(0, len(source), 2)]
    expected = [wide[head * 16 + half * 8 + pair] for head in range(2) for pair in range(8) for half in range(2)]
    assert data(found, "blk.1.attn_k.bias") == b"".join(b"\0\0" + upper for upper in expected)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_what_gpt2_stores_by_columns_is_turned(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tiny_families.tensors("gpt2", dtype)
    found = plan(folder_of(tmp_path, "gpt2", tensors=tensors))
    name, (n_rows, n_columns) = "transformer.h.0.mlp.c_fc.weight", (64, 256)
    size = 4 if dtype == "F32" else 2
    source = tensors[name].data
    elements = [source[start : start + size] for start in range(0, len(source), size)]
    expected = b"".join(elements[row * n_columns + column] for column in range(n_columns) for row in range(n_rows))
    assert data(found, "blk.0.ffn_up.weight") == expected
    monkeypatch.setattr("shimmy.formats.convert.transforms.TRANSPOSED_BYTES", 1_000)  # several passes
    assert data(found, "blk.0.ffn_up.weight") == expected


@pytest.mark.parametrize("chunk_bytes", [600, 1 << 20])
def test_chunks_of_any_size_give_the_same_bytes(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(folder_of(tmp_path, "mistral", dtype="BF16"))
    whole = {output.info.name: data(found, output.info.name) for output in found.recipe.outputs}
    monkeypatch.setattr("shimmy.formats.convert.transforms.CHUNK_BYTES", chunk_bytes)
    assert {output.info.name: data(found, output.info.name) for output in found.recipe.outputs} == whole


def test_gemmas_norms_are_one_more(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("gemma2")
    found = plan(folder_of(tmp_path, "gemma2", tensors=tensors))
    stored = numbers(tensors["model.layers.1.pre_feedforward_layernorm.weight"].data)
    assert numbers(data(found, "blk.1.ffn_norm.weight")) == pytest.approx([number + 1 for number in stored], rel=1e-7)


def test_gemma_3_queries_are_divided_by_its_own_number(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("gemma3_text")
    found = plan(folder_of(tmp_path, "gemma3_text", {"query_pre_attn_scalar": 64}, tensors=tensors))
    stored = numbers(tensors["model.layers.0.self_attn.q_norm.weight"].data)
    expected = [(number + 1) / 2 for number in stored]  # the engine divides by the root of 16 and not of 64
    assert numbers(data(found, "blk.0.attn_q_norm.weight")) == pytest.approx(expected, rel=1e-6)
    keys = numbers(tensors["model.layers.0.self_attn.k_norm.weight"].data)
    assert numbers(data(found, "blk.0.attn_k_norm.weight")) == pytest.approx([key + 1 for key in keys], rel=1e-6)


def test_a_scale_of_gemmas_queries_changes_no_other_family(tmp_path: Path) -> None:
    """It was applied to the queries of every family that has a norm of them, where a config.json had the key."""
    changed = plan(folder_of(tmp_path / "changed", "qwen3", {"query_pre_attn_scalar": 64}))
    plain = plan(folder_of(tmp_path / "plain", "qwen3"))
    assert data(changed, "blk.0.attn_q_norm.weight") == data(plain, "blk.0.attn_q_norm.weight")


def test_experts_are_stacked_however_they_are_stored(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("qwen3_moe", "BF16")
    apart = plan(folder_of(tmp_path / "apart", "qwen3_moe", tensors=tensors))
    fused = dict(tensors)
    for layer in range(tiny_families.LAYERS):
        block = f"model.layers.{layer}.mlp.experts"
        parts = [
            {name: fused.pop(f"{block}.{expert}.{name}_proj.weight").data for name in ("gate", "up", "down")}
            for expert in range(tiny_families.EXPERTS)
        ]
        gate_up = b"".join(part["gate"] + part["up"] for part in parts)
        fused[f"{block}.gate_up_proj"] = Weights((tiny_families.EXPERTS, 64, 64), gate_up, "BF16")
        down = b"".join(part["down"] for part in parts)
        fused[f"{block}.down_proj"] = Weights((tiny_families.EXPERTS, 64, 32), down, "BF16")
    together = plan(folder_of(tmp_path / "fused", "qwen3_moe", tensors=fused))
    for name in ("gate", "up", "down"):
        expected = b"".join(
            tensors[f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight"].data
            for expert in range(tiny_families.EXPERTS)
        )
        assert data(apart, f"blk.1.ffn_{name}_exps.weight") == expected
        assert data(together, f"blk.1.ffn_{name}_exps.weight") == expected


def test_rows_behind_the_vocabulary_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "vocabulary", sentencepiece)
    tensors = tiny_families.tensors("mistral")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        (n_rows, n_columns), content = tensors[name].shape, tensors[name].data
        tensors[name] = Weights((n_rows + 3, n_columns), content + bytes(3 * 4 * n_columns))
    convert.convert(folder_of(tmp_path, "mistral", tensors=tensors), tmp_path / "made.gguf", ignore)
    shapes = gguf.contents(tmp_path / "made.gguf").tensors
    assert shapes[b"token_embd.weight"].shape == shapes[b"output.weight"].shape == (64, len(vocabulary()))
    few = {name: Weights((9, 64), tensor.data[: 9 * 256]) for name, tensor in tensors.items() if tensor.shape[0] > 300}
    folder = folder_of(tmp_path / "few", "mistral", tensors={**tensors, **few})
    with pytest.raises(Unconvertible, match="only 9 of them have embeddings"):
        convert.convert(folder, tmp_path / "few.gguf", ignore)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_multimodal_checkpoint_is_taken(prefix: str, tmp_path: Path) -> None:
    plain = plan(folder_of(tmp_path / "plain", "gemma3_text"))
    tensors = {
        name.replace("model.", prefix, 1): tensor for name, tensor in tiny_families.tensors("gemma3_text").items()
    }
    tensors["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"] = Weights((2, 2), bytes(16))
    tensors["model.multi_modal_projector.mm_soft_emb_norm.weight"] = Weights((2,), bytes(8))
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {},
        "text_config": {**tiny_families.config("gemma3_text"), "architectures": None},
    }  # fmt: skip
    found = plan(write_checkpoint(tmp_path / "both", config, tensors))
    names = [output.info.name for output in plain.recipe.outputs]
    assert sorted(output.info.name for output in found.recipe.outputs) == sorted(names)
    assert all(data(found, name) == data(plain, name) for name in names)
    assert metadata(found) == metadata(plain)


def test_a_base_model_has_no_prefix_and_no_head(tmp_path: Path) -> None:
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in tiny_families.tensors("qwen2").items()
        if name != "lm_head.weight"
    }
    changes = {"architectures": ["Qwen2Model"], "tie_word_embeddings": False}
    found = plan(folder_of(tmp_path, "qwen2", changes, tensors=tensors))
    assert "output.weight" not in {output.info.name for output in found.recipe.outputs}


def test_old_names_of_bert_are_known(tmp_path: Path) -> None:
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tiny_families.tensors("bert").items()
    }
    renamed["cls.predictions.bias"] = Weights((4,), bytes(16))
    old, new = plan(folder_of(tmp_path / "old", "bert", tensors=renamed)), plan(folder_of(tmp_path, "bert"))
    assert {output.info for output in old.recipe.outputs} == {output.info for output in new.recipe.outputs}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_tensor_too_few_or_too_many_is_named(model_type: str, tmp_path: Path) -> None:
    tensors = tiny_families.tensors(model_type)
    for name in [name for name in tensors if name.endswith("weight") and "pooler" not in name][-4:]:
        fewer = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(Unconvertible, match="is missing"):
            plan(folder_of(tmp_path, model_type, tensors=fewer))
    more = {**tensors, "model.layers.0.mlp.surprise.weight": Weights((1,), bytes(4))}
    with pytest.raises(Unconvertible, match=r"surprise\.weight` is not one that the architecture"):
        plan(folder_of(tmp_path, model_type, tensors=more))


def test_a_missing_head_is_named_where_config_json_says_that_there_is_one(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("qwen2")
    del tensors["lm_head.weight"]
    with pytest.raises(Unconvertible, match=r"`lm_head\.weight` is missing"):
        plan(folder_of(tmp_path, "qwen2", {"tie_word_embeddings": False}, tensors=tensors))


def test_a_family_that_never_ties_its_head_needs_one(tmp_path: Path) -> None:
    found = plan(folder_of(tmp_path, "nemotron_h", {"tie_word_embeddings": True}))
    assert "output.weight" in {output.info.name for output in found.recipe.outputs}


def test_where_no_layer_has_the_window_that_the_engine_computes_it_is_the_context(tmp_path: Path) -> None:
    found = metadata(plan(folder_of(tmp_path, "gemma2", {"layer_types": ["full_attention"] * 2})))
    assert "attention.sliding_window_pattern" not in found
    assert found["attention.sliding_window"] == found["context_length"]


def head_of(folder: Path, model_type: str, numbers: bytes | None) -> ConversionPlan:
    """As it is converted: a model that ties its head to its embeddings, and has one with these numbers or the same."""
    tensors = tiny_families.tensors(model_type)
    embeddings = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = replace(embeddings, data=embeddings.data if numbers is None else numbers)
    found = plan(folder_of(folder, model_type, {"tie_word_embeddings": True}, tensors=tensors))
    return prepared(found, "", None)[0]


def names(found: ConversionPlan) -> set[str]:
    return {output.info.name for output in found.recipe.outputs}


def test_a_tied_head_is_left_out_where_it_is_the_embeddings(tmp_path: Path) -> None:
    embeddings = tiny_families.tensors("qwen2")["model.embed_tokens.weight"]
    one, other = head_of(tmp_path, "qwen2", None), head_of(tmp_path, "qwen2", bytes(len(embeddings.data)))
    assert names(other) - names(one) == {"output.weight"}, "what differs counts, as in transformers 5"
    assert other.n_params - one.n_params == math.prod(embeddings.shape)
    assert other.size_bytes > one.size_bytes
    last = embeddings.data[:-1] + bytes([embeddings.data[-1] ^ 1])
    assert "output.weight" in names(head_of(tmp_path, "qwen2", last))


@pytest.mark.parametrize("model_type", ["gemma2", "falcon_h1"])
def test_a_head_beside_embeddings_is_refused_where_the_engine_has_none(tmp_path: Path, model_type: str) -> None:
    embeddings = tiny_families.tensors(model_type)["model.embed_tokens.weight"]
    assert "output.weight" not in names(head_of(tmp_path, model_type, None))
    with pytest.raises(Unconvertible, match=r"`lm_head.weight` is not its embeddings, which is all that the engine"):
        head_of(tmp_path, model_type, bytes(len(embeddings.data)))


# -- rotary positions ------------------------------------------------------------------------------------------------


def test_rotation_is_read_in_the_style_of_any_version(tmp_path: Path) -> None:
    linear = {"factor": 4.0}
    styles: Sequence[dict[str, Any]] = (
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", **linear}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", **linear}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, **linear}},
    )
    found = [metadata(plan(folder_of(tmp_path, "llama", style))) for style in styles]
    assert found[0] == found[1] == found[2]
    assert (found[0]["rope.freq_base"], found[0]["rope.scaling.type"], found[0]["rope.scaling.factor"]) == (
        5e5, "linear", 4.0,
    )  # fmt: skip


def test_both_rotations_of_gemma_3_are_read_in_the_style_of_any_version(tmp_path: Path) -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    sliding = {"rope_type": "default", "rope_theta": 2e4}
    new = {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    old = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 2e4, "rope_theta": 1e6}
    found = [metadata(plan(folder_of(tmp_path, "gemma3_text", style))) for style in (new, old)]
    assert found[0] == found[1]
    assert (found[0]["rope.freq_base"], found[0]["rope.freq_base_swa"], found[0]["rope.scaling.factor"]) == (
        1e6, 2e4, 8.0,
    )  # fmt: skip


def test_llama_3_divides_long_waves(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    found = plan(folder_of(tmp_path, "llama", {"rope_scaling": scaling}))
    factors = numbers(data(found, "rope_freqs.weight"))
    waves = [64 / (2 * math.pi * 10000.0 ** (index / 16)) for index in range(0, 16, 2)]
    assert len(factors) == 8
    for factor, n_waves in zip(factors, waves, strict=True):
        if n_waves > 4:
            assert factor == 1
        elif n_waves < 1:
            assert factor == 8
        else:
            smooth = (n_waves - 1) / 3
            assert factor == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-6)
    assert 1 < factors[2] < 8
    assert "rope.scaling.type" not in metadata(found)


def test_yarn_says_only_what_the_engine_does_not_multiply_with_anyway(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    found = metadata(plan(folder_of(tmp_path, "qwen2", {"rope_scaling": yarn})))
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("yarn", 4.0)
    assert found["rope.scaling.original_context_length"] == 64
    assert "rope.scaling.attn_factor" not in found
    found = metadata(plan(folder_of(tmp_path, "qwen2", {"rope_scaling": {**yarn, "attention_factor": 2.0}})))
    assert found["rope.scaling.attn_factor"] == pytest.approx(2 / (0.1 * math.log(4) + 1))
    for change in ({"beta_fast": 16.0}, {"truncate": False}):
        assert next(iter(change)) in reason(tmp_path, "qwen2", {"rope_scaling": {**yarn, **change}})


def test_phi_3_has_its_factors_and_the_context_where_the_short_ones_are_right(tmp_path: Path) -> None:
    short, long = [1.0 + index / 8 for index in range(8)], [2.0 + index for index in range(8)]
    for scaling in ({"type": "su"}, {"rope_type": "longrope"}):
        changes = {
            "rope_scaling": {**scaling, "short_factor": short, "long_factor": long},
            "original_max_position_embeddings": 64,
        }
        found = plan(folder_of(tmp_path, "phi3", changes))
        assert numbers(data(found, "rope_factors_short.weight")) == tuple(short)
        assert numbers(data(found, "rope_factors_long.weight")) == tuple(long)
        assert metadata(found)["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
        assert found.n_ctx_train == metadata(found)["context_length"] == 64
        (notice,) = found.notices
        assert "limited to 64 of 256 tokens" in notice
    too_few = {**changes, "rope_scaling": {"type": "su", "short_factor": short[:7], "long_factor": long}}
    assert "short_factor" in reason(tmp_path, "phi3", too_few)
    # As in transformers 5, the context that stands beside the factors counts.
    inside = {"type": "su", "short_factor": short, "long_factor": long, "original_max_position_embeddings": 32}
    assert plan(folder_of(tmp_path / "inside", "phi3", {**changes, "rope_scaling": inside})).n_ctx_train == 64


@pytest.mark.parametrize("parameters", [
    {"rope_type": "default", "rope_theta": 5e3}, {"rope_type": "yarn", "rope_theta": 5e3, "factor": 2.0},
])  # fmt: skip
def test_a_scaling_in_an_old_place_is_not_passed_over(tmp_path: Path, parameters: dict[str, Any]) -> None:
    """Somebody adds YaRN as a model's page tells, to a config.json that transformers 5 wrote: it was ignored."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert "rope_scaling" in reason(tmp_path, "qwen3", {"rope_parameters": parameters, "rope_scaling": yarn})


def test_a_base_of_the_rotation_that_is_left_out_is_that_of_transformers(tmp_path: Path) -> None:
    """For Exaone 4 it was another one. Versions of transformers do not agree on Falcon-H1's."""
    found = metadata(plan(folder_of(tmp_path, "exaone4", {"rope_theta": None})))
    assert found["rope.freq_base"] == 10_000.0
    assert "rope_theta" in reason(tmp_path, "falcon_h1", {"rope_theta": None})


@pytest.mark.parametrize(
    ("outer", "inner", "merged"), [(True, False, None), (False, True, None), (True, True, True), ([], True, True)]
)
def test_what_says_two_things_of_a_head_says_nothing(outer: object, inner: object, merged: object) -> None:
    """A list in the place of the outer one was a TypeError, in which the catalog found no reason for a person."""
    config = {"tie_word_embeddings": outer, "text_config": {"tie_word_embeddings": inner}}
    assert text_config(config)["tie_word_embeddings"] == merged


def test_a_scaling_may_be_written_in_both_places(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": None}
    whole = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    twice = plan(folder_of(tmp_path / "twice", "qwen3", {"rope_parameters": whole, "rope_scaling": yarn}))
    assert metadata(twice) == metadata(plan(folder_of(tmp_path / "once", "qwen3", {"rope_parameters": whole})))
    old = {"rope_parameters": {}, "rope_scaling": yarn}
    assert metadata(plan(folder_of(tmp_path / "old", "qwen3", old))) == metadata(twice)


def test_a_part_of_a_head_may_be_rotated_in_phi_only(tmp_path: Path) -> None:
    assert metadata(plan(folder_of(tmp_path, "phi3", {"partial_rotary_factor": 0.75})))["rope.dimension_count"] == 12
    assert "partial_rotary_factor" in reason(tmp_path, "llama", {"partial_rotary_factor": 0.5})


# -- what the engine would compute wrongly ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 64}),
        ("mixtral", {"sliding_window": 64}),
        ("phi3", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2, "original_max_position_embeddings": 64}}),
    ],
)
def test_the_context_ends_where_the_engine_would_be_wrong(
    model_type: str, changes: Mapping[str, Any], tmp_path: Path
) -> None:
    found = plan(folder_of(tmp_path, model_type, changes))
    assert found.n_ctx_train == metadata(found)["context_length"] == 64
    assert len(found.notices) == 1


def test_nomic_was_trained_on_2048_positions_where_it_scales_more_and_does_not_say_so(tmp_path: Path) -> None:
    changes = {"max_position_embeddings": 8192, "rotary_scaling_factor": 2}
    assert plan(folder_of(tmp_path, "nomic_bert", changes)).n_ctx_train == 2048
    trained = {"max_trained_positions": 4096}
    assert plan(folder_of(tmp_path / "said", "nomic_bert", changes | trained)).n_ctx_train == 4096


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 256}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_window_without_effect_limits_nothing(model_type: str, changes: Mapping[str, Any], tmp_path: Path) -> None:
    found = plan(folder_of(tmp_path, model_type, changes))
    assert (found.n_ctx_train, found.notices) == (256, ())


@pytest.mark.parametrize(
    ("model_type", "changes", "word"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, "no_rope_layer_interval"),
        ("gemma2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen2", {"head_dim": 32}, "head_dim"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
        ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
        ("qwen2", {"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ("qwen2", {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ("llama", {"hidden_act": "relu"}, "relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("eurobert", {"rope_theta": None}, "rope_theta"),
        ("eurobert", {"head_dim": 32}, "head_dim"),
        ("eurobert", {"is_decoder": True}, "is_decoder"),
        ("xlm-roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("xlm-roberta", {"pad_token_id": -1}, "pad_token_id"),
        ("xlm-roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
        ("embedding_gemma", {"use_bidirectional_attention": None}, "use_bidirectional_attention"),
        ("embedding_gemma", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("modernbert", {"norm_bias": True}, "norm_bias"),
        ("modernbert", {"attention_bias": True}, "attention_bias"),
        ("modernbert", {"mlp_bias": True}, "mlp_bias"),
        ("modernbert", {"hidden_activation": "relu"}, "relu"),
        ("modernbert", {"local_rope_theta": None}, "local_rope_theta"),
        ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ("modernbert", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ("nomic_bert", {"hidden_act": "gelu"}, "gelu"),
        ("apertus", {"rope_parameters": None}, "rope_scaling"),
        ("apertus", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("apertus", {"hidden_act": "silu"}, "silu"),
        ("exaone4", {"sliding_window": 64}, "sliding_window"),
        ("exaone4", {"head_dim": 32}, "head_dim"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": 0}}, "alpha"),
        ("hunyuan_v1_dense", {"num_experts": 8}, "num_experts"),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm"),
        ("hunyuan_v1_dense", {"use_cla": True}, "use_cla"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "layer_types"),
        ("granitemoehybrid", {"layer_types": ["mamba", "mamba"]}, "layer_types"),
        ("nemotron_h", {"hybrid_override_pattern": "MME"}, "layer_types"),
        ("granitemoehybrid", {"layer_types": ["mamba", "mlp"]}, "layer_types"),
        ("granitemoehybrid", {"layer_types": ["mamba", ["attention"]]}, "layer_types"),
        ("granitemoehybrid", {"layer_types": None}, "layer_types"),
        ("granitemoehybrid", {"mamba_expand": 3}, "mamba_expand"),
        ("granitemoehybrid", {"mamba_d_head": 32}, "mamba_n_heads"),
        ("granitemoehybrid", {"mamba_n_groups": 3}, "mamba_n_heads"),
        ("granitemoehybrid", {"mamba_d_conv": 1}, "mamba_d_conv"),
        ("granitemoehybrid", {"mamba_d_state": 10**6}, "mamba_d_state"),
        ("granitemoehybrid", {"mamba_conv_bias": False}, "mamba_conv_bias"),
        ("granitemoehybrid", {"mamba_proj_bias": True}, "mamba_proj_bias"),
        ("granitemoehybrid", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type"),
        ("granitemoehybrid", {"layer_types": ["attention"] * 2, "num_local_experts": 4}, "layer_types"),
        ("nemotron_h", {"hybrid_override_pattern": "MM*E"}, "layer_types"),
        ("nemotron_h", {"hybrid_override_pattern": "M*?"}, "layer_types"),
        ("nemotron_h", {"hybrid_override_pattern": "ME-"}, "layer_types"),
        ("nemotron_h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act"),
        ("nemotron_h", {"use_bias": True}, "use_bias"),
        ("nemotron_h", {"n_group": 2}, "n_group"),
        ("nemotron_h", {"n_shared_experts": 2}, "n_shared_experts"),
        ("nemotron_h", {"routed_scaling_factor": 0}, "routed_scaling_factor"),
        ("nemotron_h", {"sliding_window": 64}, "sliding_window"),
        ("nomic_bert", {"prenorm": True}, "prenorm"),
        ("nomic_bert", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
        ("nomic_bert", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base"),
        ("nomic_bert", {"num_experts": 8, "moe_every_n_layers": 2}, "silu"),
        ("nomic_bert", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e3}}, "yarn"),
        ("qwen2", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    model_type: str, changes: Mapping[str, Any], word: str, tmp_path: Path
) -> None:
    assert f"`{word}`" in reason(tmp_path, model_type, changes)


@pytest.mark.parametrize(
    ("model_type", "changes"), [("llama", {"max_position_embeddings": 1}), ("mistral", {"sliding_window": 1})]
)
def test_a_context_without_room_for_a_reply_is_refused(
    model_type: str, changes: Mapping[str, Any], tmp_path: Path
) -> None:
    """It was converted, and the engine refused what came out."""
    assert "its context is limited to 1 tokens" in reason(tmp_path, model_type, changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"architectures": ["FalconForCausalLM"], "model_type": "falcon"}, "FalconForCausalLM"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "LlamaBidirectionalModel"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "mamba\n2"}, r"mamba\n2"),
    ],
)
def test_an_unknown_architecture_is_refused_with_the_list_of_what_works(
    changes: Mapping[str, Any], name: str, tmp_path: Path
) -> None:
    said = reason(tmp_path, "llama", changes)
    assert f"`{name}` is not supported" in said
    for title in ("Llama", "Mixtral", "SmolLM3", "Granite", "Qwen3-MoE", "Gemma 3", "Phi-3", "GPT-2", "BERT encoders"):
        assert title in said


@pytest.mark.parametrize("method", ["hqq", "aqlm", "exl3", "higgs", "quark", "eetq", "bitnet", "quanto"])
def test_quantised_weights_are_refused_by_name(method: str, tmp_path: Path) -> None:
    said = reason(tmp_path, "llama", {"quantization_config": {"quant_method": method}})
    assert f"quantised ({method})" in said
    assert "BF16" in said


def test_quantised_weights_are_seen_without_a_word_in_config_json(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("llama")
    fp8 = {**tensors, "model.layers.0.mlp.up_proj.weight": Weights((96, 64), bytes(96 * 64), "F8_E4M3")}
    with pytest.raises(Unconvertible, match=r"quantised \(F8_E4M3\), and its configuration does not say how"):
        plan(folder_of(tmp_path, "llama", tensors=fp8))
    gptq = {**tensors, "model.layers.0.mlp.up_proj.qweight": Weights((8, 96), bytes(8 * 96 * 4), "I32")}
    with pytest.raises(Unconvertible, match="quantised"):
        plan(folder_of(tmp_path, "llama", tensors=gptq))
    odd = {**tensors, "model.layers.0.mlp.up_proj.weight": Weights((96, 64), bytes(96 * 64 * 8), "F64")}
    with pytest.raises(Unconvertible, match="is in F64"):
        plan(folder_of(tmp_path, "llama", tensors=odd))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0), ("hidden_size", "64"), ("hidden_size", True), ("hidden_size", 1e3), ("hidden_size", None),
        ("num_hidden_layers", 513), ("num_attention_heads", 10**30), ("num_key_value_heads", 3),
        ("rms_norm_eps", -1.0), ("rms_norm_eps", 10**400), ("rms_norm_eps", "x"), ("rope_theta", 0),
        ("rope_parameters", []), ("max_position_embeddings", 2**31), ("head_dim", 2**20), ("head_dim", 15),
        ("layer_types", 7), ("intermediate_size", 95),
    ],
)  # fmt: skip
def test_an_impossible_value_is_named(key: str, value: Any, tmp_path: Path) -> None:
    said = reason(tmp_path, "mistral", {key: value})
    assert "config.json" in said
    assert "\n" not in said
    assert len(said) < 300


# -- pooling ---------------------------------------------------------------------------------------------------------


def write_modules(folder: Path, pooling: Mapping[str, Any], *others: str) -> None:
    kinds = ["Transformer", "Pooling", *others]
    (folder / "modules.json").write_text(
        str([{"idx": index, "path": f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
             for index, kind in enumerate(kinds)]).replace("'", '"')
    )  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(str(dict(pooling)).replace("'", '"').replace("True", "true"))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode": "cls"}, 2),
    ],
)
def test_pooling_is_that_of_sentence_transformers(pooling: Mapping[str, Any], expected: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "bert")
    write_modules(folder, pooling, "Normalize")
    found = plan(folder)
    assert metadata(found)["pooling_type"] == expected
    assert found.is_embedding


def test_an_encoder_that_does_not_say_how_to_pool_takes_the_mean_and_says_so(tmp_path: Path) -> None:
    found = plan(folder_of(tmp_path, "bert"))
    assert metadata(found)["pooling_type"] == 1
    assert "pool" in found.notices[0]


def test_other_pooling_and_other_modules_are_refused(tmp_path: Path) -> None:
    for index, (pooling, others) in enumerate(
        (({"pooling_mode_max_tokens": True}, ()), ({}, ()), ({"pooling_mode_cls_token": True}, ("WordWeights",)))
    ):
        folder = folder_of(tmp_path / str(index), "bert")
        write_modules(folder, pooling, *others)
        with pytest.raises(Unconvertible, match=r"pooling|WordWeights"):
            plan(folder)


IDENTITY = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}


def write_dense(folder: Path, index: int, shape: tuple[int, int], **changes: Any) -> None:
    (folder / f"{index}_Dense").mkdir()
    (folder / f"{index}_Dense" / "config.json").write_text(json.dumps(IDENTITY | changes))
    weights = {"linear.weight": random_weights(Random(index), shape)}
    (folder / f"{index}_Dense" / "model.safetensors").write_bytes(encode_safetensors(weights))


def test_matrices_behind_the_pooling_are_part_of_the_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "embedding_gemma")
    write_modules(folder, {"pooling_mode_mean_tokens": True}, "Dense", "Dense", "Normalize")
    with pytest.raises(InvalidSafetensors, match=r"2_Dense/config\.json"):
        plan(folder)
    write_dense(folder, 2, (96, 64))
    write_dense(folder, 3, (64, 96))
    before = cache_name(folder)
    found = plan(folder)
    assert found.shapes["dense_2.weight"] == (64, 96)
    assert found.shapes["dense_3.weight"] == (96, 64)
    assert [metadata(found)[f"dense_{number}_feat_out"] for number in (2, 3)] == [96, 64]
    (folder / "3_Dense" / "model.safetensors").touch()
    os.utime(folder / "3_Dense" / "model.safetensors", ns=(1, 1))
    assert cache_name(folder) != before


@pytest.mark.parametrize(
    ("model_type", "modules", "second", "changes", "word"),
    [
        ("bert", ("Dense", "Dense"), (64, 96), {}, "Dense"),
        ("embedding_gemma", ("Dense", "Dense"), (64, 80), {}, "size"),
        ("embedding_gemma", ("Dense", "Dense"), (32, 96), {}, "Dense"),
        ("embedding_gemma", ("Dense", "Dense", "Dense"), (96, 96), {}, "missing"),
        ("embedding_gemma", ("Dense",), (64, 96), {}, "Dense"),
        ("embedding_gemma", ("Normalize", "Dense", "Dense"), (64, 96), {}, "order"),
        ("embedding_gemma", ("Dense", "Dense"), (64, 96), {"bias": True}, "bias"),
        ("embedding_gemma", ("Dense", "Dense"), (64, 96), {"activation_function": "torch.nn.Tanh"}, "activation"),
        ("embedding_gemma", ("Dense", "Dense"), (64, 96), {"activation_function": None}, "activation"),
    ],
)
def test_other_matrices_behind_the_pooling_are_refused(
    model_type: str, modules: tuple[str, ...], second: tuple[int, int], changes: Mapping[str, Any], word: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = folder_of(tmp_path, model_type)
    write_modules(folder, {"pooling_mode_mean_tokens": True}, *modules)
    write_dense(folder, 2, (96, 64))
    write_dense(folder, 3, second, **changes)
    with pytest.raises((Unconvertible, InvalidSafetensors), match=word):
        plan(folder)


def test_modules_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "bert")
    for path in ("../bert", "/etc", "..", "a/b", "a\\\\b"):
        (folder / "modules.json").write_text(f'[{{"type": "x.Pooling", "path": "{path}"}}]')
        with pytest.raises(Unconvertible, match="not a folder in this one"):
            plan(folder)
