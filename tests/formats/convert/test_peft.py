"""LoRA adapters as PEFT writes them: what the engine computes with one is what its matrices, merged by hand, make."""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert import convert, peft
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import lora, reader
from shimmy.formats.gguf.reader import InvalidGguf
from shimmy.formats.safetensors import huggingface
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from tests import tiny_families
from tests.formats.convert.test_convert import tensor_bytes
from tests.formats.convert.test_recipe import DECODERS, folder_of, ignore, sentencepiece
from tests.peft_adapters import ALPHA, CONFIG, RANK, merged, pairs, write_adapter
from tests.rewriting import rewrite
from tests.tiny_checkpoints import N_VOCAB, Weights, encode_safetensors, llama_tensors, random_weights, write_tiny_llama
from tests.tiny_models import write_tiny_model

TOKENS = [5, 6, 7, 300, 41, 42, 250, 9]
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
EMBEDDINGS = ("embed_tokens", "lm_head")
MODULES = {
    "mixtral": (*ATTENTION, "block_sparse_moe.gate", ".w1", ".w2", ".w3", *EMBEDDINGS),
    "qwen3_moe": (*ATTENTION, "mlp.gate", "gate_proj", "up_proj", "down_proj", *EMBEDDINGS),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", *EMBEDDINGS),
    "granitemoehybrid": (
        *ATTENTION,
        "mamba.in_proj",
        "mamba.out_proj",
        "shared_mlp.output_linear",
        "router.layer",
        *EMBEDDINGS,
    ),
    "nemotron_h": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "in_proj",
        "out_proj",
        "mixer.gate",
        "up_proj",
        "down_proj",
        "lm_head",
    ),
    **dict.fromkeys(
        ("deepseek_v3", "deepseek_v32", "glm_moe_dsa"),
        ("o_proj", "gate_proj", "up_proj", "down_proj", "mlp.gate", "embed_tokens"),
    ),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "bert": ("query", "key", "value", "dense"),
}
TOLERANCE = 1e-5


def modules(model_type: str) -> tuple[str, ...]:
    usual = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return MODULES.get(model_type, usual if model_type in tiny_families.TIED else (*usual, *EMBEDDINGS))


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(autouse=True)
def _vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "vocabulary", sentencepiece)


def model_of(folder: Path, model_type: str, tensors: Mapping[str, Weights] | None = None) -> Path:
    """The GGUF of a tiny checkpoint."""
    path = folder / "model.gguf"
    folder.mkdir(exist_ok=True)
    convert.convert(folder_of(folder, model_type, tensors=tensors), path, ignore)
    return path


def base_of(path: Path) -> peft.Base:
    header = reader.validate(path)
    return peft.Base.of(reader.contents(path), reader.tensors(path, header))


def converted(folder: Path, model: Path) -> Path:
    """The GGUF of an adapter, which fits the model."""
    base = base_of(model)
    made = peft.cached(peft.read(folder), base, folder.parent / "cache")
    assert made is not None
    assert made.descriptor is None
    lora.check(lora.read(made.path), base.tensors)
    return made.path


def log_probabilities(path: Path, cpu: CpuBackend, adapter: Path | None = None, scale: float = 1.0) -> list[float]:
    """Of all tokens behind each of TOKENS, with an F32 KV cache and without flash attention."""
    model = LlamaModel(path, cpu)
    if adapter is not None:
        model.add_adapter(adapter)
    model.open_context(n_ctx=256, n_batch=64, n_sequences=1, n_outputs=64, n_threads=1, kv_type="f32")
    if adapter is not None:
        model.set_scales([scale])
    model.backend.batch.clear()
    model.backend.batch.add(TOKENS, 0, 0, n_outputs=len(TOKENS))
    assert model.backend.decode() == 0
    found: list[float] = []
    for row in range(len(TOKENS)):
        logits = binding.llama.llama_get_logits_ith(model.backend._context, row)[: model.vocab.n_vocab]
        total = math.log(math.fsum(map(math.exp, logits)))
        found += [logit - total for logit in logits]
    return found


def difference(left: Sequence[float], right: Sequence[float]) -> float:
    return max(abs(one - other) for one, other in zip(left, right, strict=True))


# -- what the engine computes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [name for name in DECODERS if name != "falcon_h1"])  # see test_falcon.py
def test_an_adapter_computes_what_the_merged_weights_do(model_type: str, cpu: CpuBackend, tmp_path: Path) -> None:
    tensors = tiny_families.tensors(model_type)
    matrices = pairs(tensors, modules(model_type))
    path = model_of(tmp_path / "base", model_type)
    adapter = converted(write_adapter(tmp_path / "adapter", matrices), path)
    whole = model_of(tmp_path / "merged", model_type, merged(tensors, matrices, ALPHA / RANK))
    adapted, wanted = log_probabilities(path, cpu, adapter), log_probabilities(whole, cpu)
    tolerance = 2e-3 if model_type.startswith("gemma") else TOLERANCE  # GELU goes through a table in F16
    assert difference(adapted, wanted) < tolerance
    plain = log_probabilities(path, cpu)
    assert difference(adapted, plain) > 0.1
    assert log_probabilities(path, cpu, adapter, scale=0.0) == plain


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_types_stay_what_they_are(dtype: str, cpu: CpuBackend, tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mistral")
    matrices = pairs(tensors, ATTENTION, dtype=dtype)
    path = model_of(tmp_path / "base", "mistral")
    adapter = converted(write_adapter(tmp_path / "adapter", matrices), path)
    assert {code for _, code, _ in tensor_bytes(adapter).values()} == {{"F16": 1, "BF16": 30}[dtype]}
    whole = model_of(tmp_path / "merged", "mistral", merged(tensors, matrices, ALPHA / RANK))
    # The engine rounds what it multiplies with such weights.
    assert difference(log_probabilities(path, cpu, adapter), log_probabilities(whole, cpu)) < 5e-2


@pytest.mark.parametrize("is_stabilized", [False, True])
def test_patterns_of_rank_and_alpha_count(is_stabilized: bool, cpu: CpuBackend, tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mistral")
    matrices = {**pairs(tensors, ATTENTION), **pairs(tensors, ("down_proj", "up_proj"), rank=9, seed=1)}
    adapter = write_adapter(
        tmp_path / "adapter", matrices, use_rslora=is_stabilized, rank_pattern={"down_proj": 9, "up_proj": 9},
        alpha_pattern={"layers.1.self_attn.q_proj": 2, "q_proj": 11.0, "mlp.down_proj": 7, "proj": 1000},
    )  # fmt: skip
    alphas = {
        "layers.1.self_attn.q_proj": (2, 4),
        "q_proj": (11, 4),
        "down_proj": (7, 9),
        "up_proj": (ALPHA, 9),
        "": (ALPHA, 4),
    }
    scales = {end: alpha / (math.sqrt(rank) if is_stabilized else rank) for end, (alpha, rank) in alphas.items()}
    path = model_of(tmp_path / "base", "mistral")
    whole = model_of(tmp_path / "merged", "mistral", merged(tensors, matrices, scales))
    made = converted(adapter, path)
    assert difference(log_probabilities(path, cpu, made), log_probabilities(whole, cpu)) < TOLERANCE
    codes = {name: code for name, (_, code, _) in tensor_bytes(made).items()}
    assert set(codes.values()) == {0}


def test_only_what_has_another_scale_than_the_rest_becomes_f32(tmp_path: Path) -> None:
    matrices = pairs(tiny_families.tensors("mistral"), ATTENTION, dtype="BF16")
    adapter = write_adapter(tmp_path / "adapter", matrices, alpha_pattern={"q_proj": 12})
    made = tensor_bytes(converted(adapter, model_of(tmp_path / "base", "mistral")))
    assert {name.split(".", 2)[2] for name, (_, code, _) in made.items() if code == 0} == {"attn_q.weight.lora_b"}


def test_a_gguf_of_the_family_takes_it_like_the_folder(cpu: CpuBackend, tmp_path: Path) -> None:
    original = write_tiny_model(tmp_path, seed=3)
    folder = write_tiny_llama(tmp_path / "folder", seed=3)
    convert.convert(folder, tmp_path / "folder.gguf", ignore)
    adapter = write_adapter(tmp_path / "adapter", pairs(llama_tensors(3), ATTENTION))
    made = {converted(adapter, model).read_bytes() for model in (original, tmp_path / "folder.gguf")}
    assert len(made) == 1
    assert log_probabilities(original, cpu) != log_probabilities(original, cpu, converted(adapter, original))


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_official_converter_makes(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mistral")
    matrices = pairs(tensors, ("layers.1.self_attn.k_proj", "layers.0.mlp.down_proj"))
    model = model_of(tmp_path / "base", "mistral")
    path = converted(write_adapter(tmp_path / "adapter", matrices, use_rslora=True), model)
    found = reader.contents(path)
    assert found.metadata == {
        b"general.architecture": b"llama", b"general.type": b"adapter", b"adapter.type": b"lora",
        b"adapter.lora.alpha": ALPHA * math.sqrt(RANK),
    }  # fmt: skip
    key = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
    rows = [matrices[key].data[start : start + 4 * RANK] for start in range(0, len(matrices[key].data), 4 * RANK)]
    paired = b"".join(rows[head * 16 + half * 8 + pair] for head in range(2) for pair in range(8) for half in range(2))
    down = "base_model.model.model.layers.0.mlp.down_proj"
    assert tensor_bytes(path) == {
        "blk.1.attn_k.weight.lora_a": ((64, 4), 0, matrices[key.replace("lora_B", "lora_A")].data),
        "blk.1.attn_k.weight.lora_b": ((4, 32), 0, paired),
        "blk.0.ffn_down.weight.lora_a": ((96, 4), 0, matrices[f"{down}.lora_A.weight"].data),
        "blk.0.ffn_down.weight.lora_b": ((4, 64), 0, matrices[f"{down}.lora_B.weight"].data),
    }


def test_rows_behind_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mistral")
    longer = {name: Weights((tensors[name].shape[0] + 5, 64), tensors[name].data + bytes(4 * 64 * 5))
              for name in ("model.embed_tokens.weight", "lm_head.weight")}  # fmt: skip
    model = model_of(tmp_path / "base", "mistral")
    made = converted(write_adapter(tmp_path / "adapter", pairs(longer, EMBEDDINGS)), model)
    n_tokens = tensors["lm_head.weight"].shape[0]
    shapes = {name: shape for name, (shape, _, _) in tensor_bytes(made).items()}
    assert shapes["token_embd.weight.lora_a"] == (4, n_tokens)
    assert shapes["output.weight.lora_b"] == (4, n_tokens)


def test_embeddings_that_were_stored_beside_are_the_models_own(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mistral")
    matrices = pairs(tensors, EMBEDDINGS)
    stored = matrices | {"base_model.model.model.embed_tokens.base_layer.weight": tensors["model.embed_tokens.weight"]}
    model = model_of(tmp_path / "base", "mistral")
    left, right = (
        converted(write_adapter(tmp_path / name, each), model) for name, each in (("a", matrices), ("b", stored))
    )
    assert tensor_bytes(left) == tensor_bytes(right)


def test_encoders_take_adapters(tmp_path: Path) -> None:
    matrices = pairs(tiny_families.tensors("bert"), modules("bert"))
    found = tensor_bytes(converted(write_adapter(tmp_path / "adapter", matrices), model_of(tmp_path / "base", "bert")))
    names = {name.removeprefix("blk.0.").removesuffix(".weight.lora_a") for name in found if name.startswith("blk.0.")}
    assert {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"} <= names


def test_the_eyes_of_a_model_that_only_reads_are_passed_over(tmp_path: Path) -> None:
    matrices = pairs(tiny_families.tensors("gemma3_text"), ATTENTION)
    eye = {name.replace("model.layers", "vision_tower.layers"): tensor for name, tensor in matrices.items()}
    model = model_of(tmp_path / "base", "gemma3_text")
    assert eye.keys().isdisjoint(matrices)
    one, both = (
        converted(write_adapter(tmp_path / name, each), model)
        for name, each in (("a", matrices), ("b", matrices | eye))
    )
    assert tensor_bytes(one) == tensor_bytes(both)


# -- the cache -------------------------------------------------------------------------------------------------------


def test_each_kind_of_model_has_its_own_file_which_is_made_once(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pairs(tiny_families.tensors("mistral"), ATTENTION))
    models = [model_of(tmp_path / name, name) for name in ("mistral", "qwen2")]
    paths = [converted(adapter, model) for model in models]
    assert len({path.read_bytes() for path in paths}) == 2
    times = [path.stat().st_mtime_ns for path in paths]
    assert [converted(adapter, model) for model in models] == paths
    assert [path.stat().st_mtime_ns for path in paths] == times
    write_adapter(adapter, pairs(tiny_families.tensors("mistral"), ATTENTION, seed=9), lora_alpha=7)
    assert converted(adapter, models[0]) not in paths
    assert not paths[0].exists()
    assert paths[1].exists()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")
def test_where_nothing_can_be_written_memory_serves(cpu: CpuBackend, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pairs(tiny_families.tensors("mistral"), ATTENTION))
    model = model_of(tmp_path / "base", "mistral")
    made = peft.cached(peft.read(adapter), base_of(model), None)
    assert made is not None
    assert made.descriptor is not None
    assert log_probabilities(model, cpu, made.path) == log_probabilities(model, cpu, converted(adapter, model))
    os.close(made.descriptor)


# -- what is refused -------------------------------------------------------------------------------------------------


def reason(folder: Path, model: Path) -> str:
    with pytest.raises((Unconvertible, InvalidSafetensors)) as caught:
        peft.plan(peft.read(folder), base_of(model))
    return str(caught.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "vocabulary", sentencepiece)
        return model_of(tmp_path_factory.mktemp("base"), "mistral")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"), ("peft_type", None), ("peft_type", ["LORA"]), ("use_dora", True), ("bias", "all"),
        ("bias", "lora_only"), ("bias", 0), ("lora_bias", True), ("modules_to_save", ["lm_head"]),
        ("target_parameters", ["experts.gate_up_proj"]), ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]), ("use_qalora", True), ("alora_invocation_tokens", [1, 2]),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("init_lora_weights", "loftq"),
        ("init_lora_weights", 1), ("r", 0), ("r", None), ("r", "8"), ("r", True), ("r", 2**20), ("lora_alpha", 0),
        ("lora_alpha", -1), ("lora_alpha", None), ("lora_alpha", math.nan), ("lora_alpha", math.inf),
        ("lora_alpha", 10**400), ("lora_alpha", 1e-30), ("lora_alpha", True), ("use_rslora", "yes"),
        ("alpha_pattern", ["q_proj"]), ("alpha_pattern", {"q_proj": 0}), ("alpha_pattern", {"^layers.*q_proj": 4}),
        ("alpha_pattern", {"(a+)+$": 4}),
    ],
)  # fmt: skip
def test_settings_that_are_more_than_two_matrices_are_refused_by_name(
    key: str, value: Any, model: Path, tmp_path: Path
) -> None:
    matrices = pairs(tiny_families.tensors("mistral"), ATTENTION)
    assert key in reason(write_adapter(tmp_path / "adapter", matrices, **{key: value}), model)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "no pairs"),
        ({f"{QUERY}.lora_A.weight": (4, 64)}, "not complete"),
        ({f"{QUERY}.lora_B.weight": (64, 4)}, "not complete"),
        ({f"{QUERY}.lora_A.weight": (4, 64), f"{QUERY}.lora_B.weight": (64, 3)}, "do not go together"),
        ({f"{QUERY}.lora_A.weight": (4, 8, 8), f"{QUERY}.lora_B.weight": (64, 4)}, "do not go together"),
        ({f"{QUERY}.lora_A.weight": (0, 64), f"{QUERY}.lora_B.weight": (64, 0)}, "do not go together"),
        ({f"{QUERY}.lora_A.weight": (4, 32), f"{QUERY}.lora_B.weight": (64, 4)}, "another shape"),
        ({f"{QUERY}.lora_A.weight": (4, 64), f"{QUERY}.lora_B.weight": (65, 4)}, "another shape"),
        ({f"{QUERY}.lora_magnitude_vector": (64,)}, "lora_magnitude_vector` is none of"),
        ({f"{QUERY}.base_layer.weight": (64, 64)}, "none of LoRA's|no pairs"),
        ({"q_proj.lora_A.weight": (4, 64)}, "none of LoRA's"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_pairs_of_this_model_are_refused(
    tensors: dict[str, tuple[int, ...]], complaint: str, model: Path, tmp_path: Path
) -> None:
    weights = {name: random_weights(Random(0), shape) for name, shape in tensors.items()}
    found = reason(write_adapter(tmp_path / "adapter", weights), model)
    assert any(part in found for part in complaint.split("|")), found


def pair(name: str, n_in: int = 64, n_out: int = 64, dtype: str = "F32") -> dict[str, Weights]:
    shapes = {"lora_A.weight": (4, n_in), "lora_B.weight": (n_out, 4)}
    return {f"{name}.{half}": random_weights(Random(0), shape, dtype) for half, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("model.layers.2.self_attn.q_proj", "no tensor `blk.2.attn_q.weight`"),
        ("model.layers.99999.self_attn.q_proj", "layers.99999"),
        ("model.layers.00.self_attn.q_proj", "layers.00"),
        ("model.layers.0.self_attn.qkv_proj", "qkv_proj` is nothing that"),
        ("model.layers.0.input_layernorm", "input_layernorm` is nothing that"),
        ("model.layers.0.block_sparse_moe.experts.0.w1", "no tensor `blk.0.ffn_gate_exps.weight`"),
        ("model.embed_tokens", "another shape"),
        ("layers.0.self_attn.k_proj", "twice, under two names"),
    ],
)
def test_names_that_the_model_does_not_have_are_refused(name: str, complaint: str, model: Path, tmp_path: Path) -> None:
    usual = pair("base_model.model.model.layers.0.self_attn.k_proj", n_out=32)
    assert complaint in reason(write_adapter(tmp_path / "adapter", usual | pair(f"base_model.model.{name}")), model)


def test_what_the_engine_only_looks_up_cannot_be_changed(tmp_path: Path) -> None:
    matrices = pairs(tiny_families.tensors("gpt2"), ("wpe",))
    assert "wpe` is nothing that" in reason(
        write_adapter(tmp_path / "a", matrices), model_of(tmp_path / "base", "gpt2")
    )


def test_tied_embeddings_cannot_be_changed(tmp_path: Path) -> None:
    tied = model_of(tmp_path / "base", "qwen3")
    adapter = write_adapter(tmp_path / "a", pairs(tiny_families.tensors("qwen3"), ("embed_tokens",)))
    with pytest.raises(InvalidGguf, match="uses as its output"):
        converted(adapter, tied)


def test_experts_that_are_not_all_there_or_not_alike_are_refused(tmp_path: Path) -> None:
    tensors = tiny_families.tensors("mixtral")
    path = model_of(tmp_path / "base", "mixtral")
    some = pairs(tensors, ("experts.0.w1", "experts.2.w1"))
    assert "some of the experts in `blk.0.ffn_gate_exps.weight`" in reason(write_adapter(tmp_path / "a", some), path)
    ranks = {**pairs(tensors, (".w1",)), **pairs(tensors, ("experts.3.w1",), rank=2)}
    assert "differ in rank" in reason(write_adapter(tmp_path / "b", ranks), path)
    all_of_them = pairs(tensors, (".w1",))
    adapter = write_adapter(tmp_path / "c", all_of_them, alpha_pattern={"experts.1.w1": 3})
    assert "differ in rank, scale" in reason(adapter, path)


def test_types_and_architectures_that_there_are_not_are_refused(model: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    half = {f"{name}.lora_A.weight": Weights((4, 64), bytes(8 * 4 * 64), "F64")}
    assert "is in F64" in reason(write_adapter(tmp_path / "a", pair(name) | half), model)
    base = base_of(model)
    adapter = peft.read(write_adapter(tmp_path / "b", pair(name)))
    for architecture in ("mamba", ""):
        with pytest.raises(Unconvertible, match="not supported for the architecture"):
            peft.cached(adapter, peft.Base(architecture, 4, 2, base.tensors), None)
    for n_head in (0, 3, 64):
        with pytest.raises(Unconvertible, match="how many heads"):
            peft.plan(adapter, peft.Base("llama", n_head, 2, base.tensors))


def test_it_says_what_it_is_for(model: Path, tmp_path: Path) -> None:
    adapter = peft.read(write_adapter(tmp_path / "a", pairs(tiny_families.tensors("mistral"), ATTENTION)))
    assert adapter.suits("llama")
    assert adapter.suits("qwen2", 64)
    assert not adapter.suits("llama", 128)
    assert not any(map(adapter.suits, ("phi3", "gpt2", "bert", "mamba", "")))
    conv = peft.read(write_adapter(tmp_path / "b", pairs(tiny_families.tensors("gpt2"), modules("gpt2"))))
    assert conv.suits("gpt2", 64)
    assert not conv.suits("gpt2", 32)
    assert peft.cached(conv, base_of(model), None) is None, "it is for another model of the server"


def test_what_only_a_relative_can_change_is_refused_by_name(tmp_path: Path) -> None:
    """The rows of Qwen3-Next's `out_proj` are in the GGUF as they were, those of Qwen3.5's are not."""
    adapter = peft.read(write_adapter(tmp_path / "a", pair("base_model.model.model.layers.0.linear_attn.out_proj")))
    assert adapter.suits("qwen3next")
    with pytest.raises(Unconvertible, match=r"linear_attn.out_proj` is nothing that an adapter can change in `qwen35`"):
        peft.cached(adapter, peft.Base("qwen35", 4, 2, {}), None)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_both_files_is_no_adapter(name: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pairs(tiny_families.tensors("mistral"), ATTENTION))
    (adapter / name).unlink()
    with pytest.raises(Unconvertible, match=f"it has no `{name}`"):
        peft.read(adapter)


def test_its_weights_count_for_the_memory_of_a_worker(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pairs(tiny_families.tensors("mistral"), ATTENTION))
    weights = adapter / "adapter_model.safetensors"
    assert huggingface.adapter_file(adapter) == huggingface.adapter_file(weights) == weights


def test_an_adapter_is_no_model_to_convert(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pairs(tiny_families.tensors("mistral"), ATTENTION))
    with pytest.raises(Unconvertible, match="it is a LoRA adapter"):
        convert.plan(adapter)


def test_a_config_of_any_size_or_depth_is_refused_in_no_time(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pairs(tiny_families.tensors("mistral"), ATTENTION))
    for content in ("[" * 100_000, "{}" + " " * huggingface.MAX_CONFIG_BYTES, "[]", '{"r": 1, "r": 2}', "\xff", ""):
        (adapter / "adapter_config.json").write_text(content, encoding="latin-1")
        assert "adapter_config.json" in reason(adapter, model)


def test_mutated_adapters_are_read_or_refused(model: Path, tmp_path: Path) -> None:
    base, random = base_of(model), Random(5)
    matrices = pair("base_model.model.model.layers.0.self_attn.q_proj") | pair(
        "base_model.model.model.lm_head", 64, N_VOCAB
    )
    adapter = write_adapter(tmp_path / "a", matrices)
    contents = [json.dumps(CONFIG).encode(), encode_safetensors(matrices)]
    (header_bytes,) = struct.unpack_from("<Q", contents[1])
    n_refused = 0
    for _ in range(2_000):
        mutated = [bytearray(content) for content in contents]
        which = random.randrange(2)
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(8 + header_bytes if which else len(contents[0]))
            mutated[which][at] = random.choice(b'0123456789{}[]",:.-eNaA\x00\xff')
        rewrite(adapter / "adapter_config.json", mutated[0])
        rewrite(adapter / "adapter_model.safetensors", mutated[1])
        try:
            peft.plan(peft.read(adapter), base)
        except (Unconvertible, InvalidSafetensors):
            n_refused += 1
    assert 500 < n_refused < 2_000
