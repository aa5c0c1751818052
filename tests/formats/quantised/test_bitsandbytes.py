"""What of bitsandbytes' layouts is refused by names and shapes alone."""

from pathlib import Path

import pytest

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.bitsandbytes import BitsAndBytesScheme
from shimmy.formats.quantised.stored import Tensors
from shimmy.formats.safetensors.checkpoint import read_file
from tests.tiny_checkpoints import Weights, encode_safetensors


def test_a_matrix_of_one_column_is_refused(tmp_path: Path) -> None:
    """Of an odd number of rows, the last byte has a half that is none."""
    state = b"{}"
    path = tmp_path / "model.safetensors"
    stored = {
        "up.weight": Weights((3, 1), bytes(3), "U8"),
        "up.weight.absmax": Weights((1,), bytes(4), "F32"),
        "up.weight.quant_map": Weights((16,), bytes(64), "F32"),
        "up.weight.quant_state.bitsandbytes__nf4": Weights((len(state),), state, "U8"),
    }
    path.write_bytes(encode_safetensors(stored))
    tensors = Tensors(read_file(path).tensors, {})
    with pytest.raises(Unconvertible, match="one column"):
        BitsAndBytesScheme(4).find("up", (5, 1), tensors)
    assert BitsAndBytesScheme(4).find("up", (1, 5), tensors) is not None
