"""A SafeTensors folder as a GGUF: what is in the cache was made by what its name says."""

from pathlib import Path

import pytest

from shimmy.engine.convert_checkpoint import gguf_of
from shimmy.errors import ModelUnavailable
from tests.importance_files import write_gguf_matrix
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import N_EMBD


def test_a_matrix_that_is_replaced_meanwhile_makes_no_file(tmp_path: Path) -> None:
    folder, cache = tmp_path / "tiny", tmp_path / "cache"
    write_tiny_llama(folder)

    def matrix(name: str, last: float) -> Path:
        return write_gguf_matrix(tmp_path / name, {"blk.0.attn_q.weight": ([1.0] * (N_EMBD - 1) + [last], [1])})

    path = matrix("matrix.gguf", 9.0)
    assert gguf_of(folder, cache, "q4_0", path, 1, lambda _: None).exists()
    matrix("matrix.gguf", 5.0)

    def replace(share: float) -> None:
        if share > 0:
            matrix("other.gguf", 7.0).replace(path)

    (before,) = (cache / "converted").iterdir()
    with pytest.raises(ModelUnavailable, match="has changed"):
        gguf_of(folder, cache, "q4_0", path, 1, replace)
    assert list((cache / "converted").iterdir()) == [before]
