"""A head that a checkpoint has although its config.json ties it to the embeddings: it counts where it differs.

transformers 5 does it so. Headers do not tell: both are read when the model is converted. Knows nothing of families.
"""

from dataclasses import dataclass

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, TensorReader, shown

_COMPARED_BYTES = 1 << 20  # at once


@dataclass(frozen=True, slots=True)
class TiedHead:
    """The head, and the embeddings of the same type and shape."""

    name: str
    target: str  # its name in a GGUF
    head: CheckpointTensor
    embeddings: CheckpointTensor
    is_possible: bool  # whether the engine has one beside the embeddings

    def has_to_go(self) -> bool:
        """Whether it is the embeddings again. Raises Unconvertible where it is another one than the engine can have."""
        is_same = self._is_same()
        if not is_same and not self.is_possible:
            raise other_head(self.name)
        return is_same

    def _is_same(self) -> bool:
        buffers = [memoryview(bytearray(_COMPARED_BYTES)) for _ in range(2)]
        with TensorReader() as reader, TensorReader() as other_reader:
            for start in range(0, self.head.n_bytes, _COMPARED_BYTES):
                one, other = (buffer[: self.head.n_bytes - start] for buffer in buffers)
                reader.read(self.head, start, one)
                other_reader.read(self.embeddings, start, other)
                if bytes(one) != bytes(other):
                    return False
        return True


def other_head(name: str) -> Unconvertible:
    """Of an architecture whose head are the embeddings for llama.cpp."""
    return Unconvertible(
        f"its tensor `{shown(name)}` is not its embeddings, which is all that the engine has for this architecture"
    )
