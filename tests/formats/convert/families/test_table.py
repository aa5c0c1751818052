"""The table of families: what the docs list is what is there, and what is refused with a reason of its own."""

import re
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from shimmy.formats.convert.families.table import FAMILIES
from shimmy.formats.format_errors import Unconvertible
from tests.tiny_checkpoints import Weights, write_checkpoint

PAGE = Path(__file__).parents[4] / "docs" / "safetensors.md"


def test_the_page_lists_all_families_and_no_others() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (`[^|]+) \| [^|]*\|$", PAGE.read_text().partition("## Which models")[2], re.MULTILINE
    )
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    types = {family.model_type for family in FAMILIES}
    classes = {name for family in FAMILIES for name in family.classes}
    assert types - {*listed} == set()
    assert {*listed} - types - classes == {"model_type"}  # its head


_PACKED = {"model.layers.0.mlp.up_proj.weight": Weights((24, 64), bytes(24 * 64), "U8"),
           "model.layers.0.mlp.up_proj.weight_scale": Weights((1,), bytes(2), "BF16")}  # fmt: skip
_MASTER = {"model.layers.0.mlp.up_proj.weight": Weights((96, 64), bytes(2 * 96 * 64), "BF16")}
_LINEAR = {"quant_method": "bitnet", "linear_class": "autobitlinear"}


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"quantization_config": _LINEAR | {"quantization_mode": "offline"}}, _PACKED),
        ({"quantization_config": _LINEAR | {"quantization_mode": "online"}}, _MASTER),
        ({}, _PACKED),
        ({}, _MASTER),
        ({"architectures": None}, _MASTER),
    ],
    ids=["packed", "master", "packed-without-a-word", "master-without-a-word", "without-a-class"],
)
def test_bitnet_is_refused_for_what_it_computes(
    config: dict[str, Any], tensors: dict[str, Weights], tmp_path: Path
) -> None:
    known = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"}
    with pytest.raises(Unconvertible, match="square a ReLU"):
        plan(write_checkpoint(tmp_path / "model", known | config, tensors))


@pytest.mark.parametrize("name", ["PhiMoEForCausalLM", "PhimoeForCausalLM"])
def test_phi_with_experts_is_refused_for_what_it_computes(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unconvertible, match="SparseMixer"):
        plan(write_checkpoint(tmp_path / "model", {"architectures": [name], "model_type": "phimoe"}, _MASTER))


def test_the_first_bitnet_is_refused_for_what_it_computes(tmp_path: Path) -> None:
    known = {"architectures": ["BitnetForCausalLM"], "model_type": "llama", "weight_bits": 1, "input_bits": 8}
    with pytest.raises(Unconvertible, match="rounds its weights to three values"):
        plan(write_checkpoint(tmp_path / "model", known | {"hidden_act": "silu"}, _MASTER))
