"""Converted folders of every family against what `transformers` computes from them (golden/README.md)."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shimmy.engine.convert_checkpoint import gguf_of
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert.convert import plan
from shimmy.formats.format_errors import Unconvertible
from tests.golden.tolerances import tolerance
from tests.golden.weights import (
    checkpoint,
    families,
    golden,
    makes_embeddings,
    tensor,
    write_folder,
    write_json,
    write_safetensors,
)

N_BATCH = 64
DECODERS = [family for family in families() if not makes_embeddings(family)]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def converted(folder: Path, target_type: str = "") -> Path:
    return gguf_of(folder, folder.parent / "cache", target_type or None, None, 1, lambda _: None)


def differences(model: LlamaModel, prompts: list[Any], *, n_rows: int = 0) -> Iterator[float]:
    """Of each recorded log-probability from the engine's, for the prompts that fit the model's context. Behind a prompt
    come as many other tokens as make `n_rows`."""
    for prompt in prompts:
        rows = prompt["rows"]
        if len(prompt["tokens"]) > model.n_ctx_train:
            continue
        tokens = prompt["tokens"] + [0] * (n_rows - len(prompt["tokens"]))
        model.backend.forget(0, 0)
        model.backend.batch.clear()
        model.backend.batch.add(tokens, 0, 0, n_outputs=len(tokens))
        assert model.backend.decode() == 0
        for row in rows:
            logits = binding.llama.llama_get_logits_ith(model.backend._context, row["position"])[: model.vocab.n_vocab]
            numbers = np.array(logits)
            largest = numbers.max()
            total = float(largest + np.log(np.exp(numbers - largest).sum()))
            wanted = zip([*row["top"], *prompt["fixed"]], row["log_probs"], strict=True)
            yield from (abs(logits[token] - total - log_prob) for token, log_prob in wanted)


def worst(path: Path, family: str, cpu: CpuBackend, *, exact: bool) -> float:
    """The largest difference of all prompts of a family."""
    # Flash attention, which MiniMax M3 needs, sums in F16 where it is given fewer rows than this.
    n_rows = N_BATCH if exact else 0
    model = LlamaModel(path, cpu)
    model.open_context(
        n_ctx=256, n_batch=N_BATCH, n_sequences=1, n_outputs=N_BATCH, n_threads=1, kv_type="f32" if exact else "f16"
    )
    return max(differences(model, golden(family)["prompts"], n_rows=n_rows))


@pytest.mark.parametrize(
    "exact", [pytest.param(False, id="defaults", marks=pytest.mark.thorough), pytest.param(True, id="exact")]
)
@pytest.mark.parametrize("family", DECODERS)
def test_log_probabilities_are_those_of_transformers(family: str, exact: bool, tmp_path: Path, cpu: CpuBackend) -> None:
    path = converted(write_folder(family, tmp_path / "model", "5"), "f32" if exact else "")
    assert worst(path, family, cpu, exact=exact) < tolerance(family, exact=exact)


@pytest.mark.parametrize("family", [
    "ministral3", "qwen3-next", "qwen35", "qwen35-moe", "glm4-moe", "gemma3n", "gemma4", "gemma4-moe",
    "deepseek3", "falcon-h1", "minimax-m2", "lfm2-moe", "ling1", "ling2", "olmoe", "ernie-moe", "qwen3-vl-moe",
    "deepseek32", "glm-dsa",
    "exaone-moe", "llama4", "dots1", "hunyuan-moe",
])  # fmt: skip
def test_the_engine_takes_weights_as_they_are_published(family: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """In BF16, but for what it needs in F32. What it computes of numbers that are cut off is something else."""
    path = converted(write_folder(family, tmp_path / "model", "5", "BF16"))
    assert math.isfinite(worst(path, family, cpu, exact=False))


def test_a_folder_named_like_phi_3_may_hold_any_tokens(tmp_path: Path, cpu: CpuBackend) -> None:
    """llama.cpp looks for tokens of Phi-3 where the name says so, and refused models without them."""
    assert worst(converted(write_folder("phi3", tmp_path / "my-Phi-3-mini", "4")), "phi3", cpu, exact=False) < 1e-2


@pytest.mark.parametrize("family", [family for family in families() if family != "nomic"])
def test_both_styles_of_config_give_the_same_file(family: str, tmp_path: Path) -> None:
    files = []
    for style in ("4", "5"):
        (tmp_path / style).mkdir()
        folder = write_folder(family, tmp_path / style / "model", style)
        config = json.loads((folder / "config.json").read_text())
        if n_trained := config.get(
            "max_trained_positions"
        ):  # a longer context is limited to this, and the file says so
            write_json(folder / "config.json", config | {"n_positions": n_trained})
        files.append(converted(folder).read_bytes())
    assert files[0] == files[1]


def test_the_styles_of_nomic_embed_differ_by_the_limit_of_its_context_alone(tmp_path: Path) -> None:
    """On the hub it says a longer one, beyond which its positions would be scaled."""
    hub, plain = (plan(write_folder("nomic", tmp_path / style / "model", style)) for style in ("4", "5"))
    more = [entry for entry in hub.recipe.metadata if entry not in plain.recipe.metadata]
    assert [key for key, _, _ in more] == ["shimmy.context_length_limit"]
    assert [entry for entry in hub.recipe.metadata if entry not in more] == plain.recipe.metadata
    assert hub.shapes == plain.shapes


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama-gqa", {"rope_theta": 6000.0}),
        ("llama-rope-llama3", {"rope_scaling": None}),
        ("llama-rope-linear", {"rope_scaling": None}),
        ("llama-rope-yarn", {"rope_scaling": None}),
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"attention_multiplier": 0.25}),
        ("gemma2", {"attn_logit_softcapping": 50.0}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma3-text", {"rope_local_base_freq": 10000.0}),
        ("gemma3-text", {"sliding_window": 64}),
        ("olmo3", {"sliding_window": 64}),
        ("olmo3-yarn", {"rope_scaling": None}),
        ("phi3-partial-tied", {"partial_rotary_factor": 1.0}),
        ("deepseek32", {"index_topk": 31}),
        ("deepseek32", {"index_topk": 64}),
        ("deepseek2-lite", {"routed_scaling_factor": 1.2}),
        ("mistral4", {"routed_scaling_factor": 1.2}),
        ("exaone4-window", {"sliding_window": 32}),
        ("exaone4-window", {"rope_scaling": None}),
        ("gpt-oss", {"sliding_window": 32}),
        ("glm-dsa", {"index_topk": 31}),
        ("glm-dsa", {"indexer_types": ["full", "shared", "shared"]}),
    ],
)
def test_the_comparison_sees_a_wrong_setting(
    family: str, change: dict[str, Any], tmp_path: Path, cpu: CpuBackend
) -> None:
    folder = write_folder(family, tmp_path / "model", "4")
    config = json.loads((folder / "config.json").read_text())
    assert change.keys() <= config.keys()
    write_json(folder / "config.json", config | change)
    assert worst(converted(folder), family, cpu, exact=False) > 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["deepseek2", "deepseek2-lite", "exaone4-window", "gpt-oss", "mistral4"])
def test_the_comparison_sees_each_tensor(family: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """Of the last layer of models that are as quiet as rounding needs them: other numbers move a hundred times as much
    as is right for an exact one."""
    config, tensors = checkpoint(family, "5")
    last = max(int(found[1]) for name in tensors if (found := re.search(r"model\.layers\.(\d+)\.", name)))
    names = [name for name in tensors if f"model.layers.{last}." in name]
    assert len(names) > 8
    for index, name in enumerate(names):
        folder = write_folder(family, tmp_path / str(index), "5")
        dtype, shape, _ = tensors[name]
        other = tensor("of another seed", config, name, shape, dtype)
        write_safetensors(folder / "model.safetensors", tensors | {name: other})
        assert worst(converted(folder, "f32"), family, cpu, exact=True) > 1e-2, name


def test_gpt_oss_says_what_the_engine_rounds(tmp_path: Path) -> None:
    folder = write_folder("gpt-oss", tmp_path / "model", "5")
    assert not plan(folder).notices
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters" if "rope_parameters" in config else "rope_scaling"]
    rope["truncate"] = False
    write_json(folder / "config.json", config)
    (notice,) = plan(folder).notices
    assert "rotary positions" in notice
    assert plan(folder).quantization == "MXFP4"


def test_a_gpt_oss_without_windows_has_one_as_long_as_its_context(tmp_path: Path) -> None:
    folder = write_folder("gpt-oss", tmp_path / "model", "5")
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention"] * config["num_hidden_layers"]
    write_json(folder / "config.json", config | {"layer_types": kinds})
    metadata = {key: value for key, _, value in plan(folder).recipe.metadata}
    assert "gpt-oss.attention.sliding_window_pattern" not in metadata
    assert metadata["gpt-oss.attention.sliding_window"] == metadata["gpt-oss.context_length"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"swiglu_limit": 5.0}, "swiglu_limit"), ({"quantization_config": None}, "quantised"),
     ({"num_local_experts": 4}, "shape")],
)  # fmt: skip
def test_another_gpt_oss_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = write_folder("gpt-oss", tmp_path / "model", "5")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | changes)
    with pytest.raises(Unconvertible, match=word):
        plan(folder)


@pytest.mark.parametrize("change", [{"rope_theta": 6000.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_other_positions_in_the_layers_of_olmo_3_with_a_window_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder("olmo3", tmp_path / "model", "5")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["sliding_attention"] |= change
    write_json(folder / "config.json", config)
    with pytest.raises(Unconvertible, match=next(iter(change))):
        plan(folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"full_attn_idxs": [4]}, "layer_types"),
        ({"full_attn_idxs": None}, "layer_types"),
        ({"layer_types": ["conv"] * 3}, "layer_types"),
        ({"layer_types": ["conv"] * 4}, "needs both"),
        ({"layer_types": ["full_attention"] * 4}, "needs both"),
        ({"layer_types": None, "full_attn_idxs": []}, "needs both"),
        ({"layer_types": ["conv", "mamba", "conv", "conv"]}, "layer_types"),
        ({"layer_types": ["full_attention", "conv", "conv", "conv"]}, "layers.0.self_attn"),
        ({"conv_bias": True}, "conv_bias"),
        ({"conv_L_cache": 4}, "shape"),
        ({"block_multiple_of": 0}, "block_multiple_of"),
        ({"block_ff_dim": 128}, "shape"),
        ({"theta": 1000000.0}, "theta"),
        ({"tie_embedding": False}, "lm_head"),
    ],
    ids=str,
)
def test_another_lfm2_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = write_folder("lfm2", tmp_path / "model", "4")
    assert not plan(folder).notices
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | changes)
    with pytest.raises(Unconvertible, match=word):
        plan(folder)


_BIASED = ("qwen2", "qwen2-moe", "qwen2-vl", "qwen25-vl", "glm4", "glm4v", "gpt-oss", "gpt2", "seed-oss", "starcoder2")


@pytest.mark.parametrize("family", _BIASED)
def test_a_bias_that_is_missing_is_named(family: str, tmp_path: Path) -> None:
    """The engine takes biases for optional, and would compute another model without one."""
    _, tensors = checkpoint(family, "5")
    biases = [name for name in tensors if re.search(r"\.1\.(?:self_)?attn\..*bias$", name) and "visual" not in name]
    assert biases
    for number, bias in enumerate(biases):
        folder = write_folder(family, tmp_path / str(number), "5")
        write_safetensors(
            folder / "model.safetensors", {name: found for name, found in tensors.items() if name != bias}
        )
        with pytest.raises(Unconvertible, match=rf"{re.escape(bias[bias.index('.1.') :])}` is missing"):
            plan(folder)
