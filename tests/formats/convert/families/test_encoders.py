"""Jina Embeddings v2 with both of its codes, nomic-embed v2 with experts, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from tests.formats.convert.families.changed_folders import changed, check_names_of_tensors, metadata, reason


def is_shared_bias(name: str) -> bool:
    return name.endswith(".experts.bias")


@pytest.mark.parametrize("family", ["jina2", "jina2-code", "nomic-moe"])
def test_each_tensor_is_needed(family: str, tmp_path: Path) -> None:
    check_names_of_tensors(family, tmp_path, is_shared_bias)


def test_an_older_name_tells_a_jina_for_code_as_well(tmp_path: Path) -> None:
    changes = {"auto_map": ..., "_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}
    assert plan(changed("jina2-code", changes, tmp_path)).architecture == "jina-bert-v2"


def test_a_bias_that_the_engine_leaves_out_is_told(tmp_path: Path) -> None:
    folder = changed("nomic-moe", {"max_trained_positions": 512}, tmp_path)
    (notice,) = plan(folder).notices
    assert "bias" in notice


def test_experts_are_in_every_other_layer(tmp_path: Path) -> None:
    found = metadata(changed("nomic-moe", {}, tmp_path))
    assert (found["moe_every_n_layers"], found["expert_count"], found["expert_used_count"]) == (2, 6, 2)


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("jina2-code", {"auto_map": ...}, "gated_layers"),
        ("jina2", {"_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}, "layer_norm_q"),
        ("jina2", {"feed_forward_type": "reglu"}, "feed_forward_type"),
        ("jina2", {"feed_forward_type": ...}, "feed_forward_type"),
        ("jina2", {"position_embedding_type": "absolute"}, "position_embedding_type"),
        ("jina2", {"head_dim": 32}, "head_dim"),
        ("nomic-moe", {"activation_function": "swiglu"}, "swiglu"),
        ("nomic-moe", {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights"),
        ("nomic-moe", {"num_shared_experts": 1}, "num_shared_experts"),
        ("nomic-moe", {"moe_top_k": 7}, "moe_top_k"),
        ("nomic-moe", {"moe_every_n_layers": 1}, "moe_every_n_layers"),
        ("nomic-moe", {"num_experts": 4}, "shape"),
        ("nomic-moe", {"mlp_fc1_bias": False}, "mlp_fc1_bias"),
    ],
    ids=str,
)
def test_another_one_is_refused(family: str, changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in reason(family, changes, tmp_path)
