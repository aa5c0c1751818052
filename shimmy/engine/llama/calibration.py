"""Computes an importance matrix of a model over a text; a hidden sub-command, for processes without an engine.

As llama.cpp's `llama-imatrix` does (tools/imatrix): the text is cut into pieces of 512 tokens, each is computed, and
what goes into the products with the layers' weights is squared and summed for each column, for each expert by itself.
Knows how ggml lays out a tensor; `formats.gguf.importance` knows the file.
"""

import ctypes
import sys
from array import array
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine import loading
from shimmy.engine.llama.backend import LlamaBackend
from shimmy.engine.llama.binding import function, llama, log
from shimmy.engine.llama.context import context_params
from shimmy.engine.llama.model import LlamaModel
from shimmy.errors import BadRequest, ModelUnavailable
from shimmy.formats.gguf import importance, reader
from shimmy.formats.gguf.importance import Sums

PIECE_TOKENS = 512  # of the text; each is read by itself
_ROWS = 128  # of a decode: each has logits, which are large
_F32 = 0  # ggml_type
_LEAST_ROWS = 16  # of a product that counts, as in llama.cpp
_PRODUCT, _PRODUCT_OF_EXPERTS = b"MUL_MAT", b"MUL_MAT_ID"

_operation = function("ggml_op_desc", c_char_p, c_void_p)
_n_bytes = function("ggml_nbytes", c_size_t, c_void_p)
_copy = function("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)


class _Tensor(ctypes.Structure):
    """ggml_tensor of ggml.h, up to the name."""


_Tensor._fields_ = (
    ("type", c_int), ("buffer", c_void_p), ("shape", c_int64 * 4), ("strides", c_size_t * 4), ("operation", c_int),
    ("parameters", c_int32 * 16), ("flags", c_int32), ("sources", POINTER(_Tensor) * 10), ("view_of", c_void_p),
    ("view_start", c_size_t), ("data", c_void_p), ("name", c_char * 64),
)  # fmt: skip


class Collector:
    """Adds up what goes into products. Its `callback` is for `cb_eval` of a context, and has to outlive that."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.callback = llama.ggml_backend_sched_eval_callback(self._on_node)
        self._sums: dict[str, NDArray[np.float64]] = {}  # by weight: [matrices, columns]
        self._counts: dict[str, NDArray[np.float64]] = {}  # [matrices], or [1] where all are used alike

    def sums(self) -> Sums:
        """What has been added up; raises ModelUnavailable where that is no number, or nothing."""
        if not self._sums:
            raise ModelUnavailable("no activations of its layers were seen")
        for name, sums in self._sums.items():
            if not np.isfinite(sums).all():
                raise ModelUnavailable(f"the model computes no numbers (NaN) before `{name}`: its weights are damaged")
        return {name: (_singles(self._sums[name]), _singles(self._counts[name])) for name in sorted(self._sums)}

    def _on_node(self, address: int, asks: bool, _user_data: object) -> bool:
        """The engine asks for each node whether it is wanted, and comes back once a wanted one is computed."""
        node = _Tensor.from_address(address)
        try:
            if asks:
                return self._wants(address, node)
            self._add(address, node)
        except Exception as exc:  # noqa: BLE001 - the engine is between us and whoever would catch it
            self.failure = exc
            return False
        return True

    def _wants(self, address: int, node: _Tensor) -> bool:
        operation = _operation(address)
        if operation == _PRODUCT_OF_EXPERTS:
            return True
        if operation != _PRODUCT:
            return False
        weight, given = node.sources[0].contents, node.sources[1].contents
        return given.type == _F32 and given.shape[1] >= _LEAST_ROWS and _name(weight).startswith("blk.")

    def _add(self, address: int, node: _Tensor) -> None:
        weight = node.sources[0].contents
        given = _numbers(node.sources[1], np.float32)
        if _operation(address) == _PRODUCT_OF_EXPERTS:
            chosen = _numbers(node.sources[2], np.int32)[0, 0]  # [tokens, experts of each]
            self._add_experts(_name(weight), weight.shape[2], given[0], chosen)
        else:
            self._add_rows(_name(weight), (weight.shape[3], weight.shape[2]), given)

    def _add_rows(self, name: str, n_matrices: tuple[int, int], given: NDArray[np.float32]) -> None:
        """`given` is [.., .., rows, columns]; its first two numbers pick the matrix."""
        outer, inner = n_matrices
        sums, counts = self._place(name, outer * inner, given.shape[3], 1)
        for i, several in enumerate(given):
            for j, rows in enumerate(several):
                sums[i % outer * inner + j % inner] += _squares(rows)
        counts += given.size // given.shape[3] // (outer * inner)

    def _add_experts(self, name: str, n_experts: int, given: NDArray[np.float32], chosen: NDArray[np.int32]) -> None:
        """`given` is [tokens, 1 or experts of each, columns]."""
        sums, counts = self._place(name, n_experts, given.shape[2], n_experts)
        for expert in {*chosen.ravel().tolist()}:
            tokens, places = np.nonzero(chosen == expert)
            sums[expert] += _squares(given[tokens, places % given.shape[1]])
            counts[expert] += len(tokens)

    def _place(self, name: str, n_matrices: int, n_columns: int, n_counts: int) -> Any:
        if name not in self._sums:
            self._sums[name] = np.zeros((n_matrices, n_columns), np.float64)
            self._counts[name] = np.zeros(n_counts, np.float64)
        return self._sums[name], self._counts[name]


def _singles(numbers: NDArray[np.float64]) -> "array[float]":
    """In F32, 4 bytes each: a model of many experts has hundreds of millions."""
    found = array("f")
    found.frombytes(numbers.astype(np.float32).tobytes())
    return found


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of the squares of each column."""
    sums: NDArray[np.float64] = np.square(rows).sum(axis=0, dtype=np.float64)
    return sums


def _numbers(pointer: Any, dtype: type) -> NDArray[Any]:
    """What is in a tensor, its dimensions in numpy's order."""
    tensor, address = pointer.contents, ctypes.addressof(pointer.contents)
    buffer = bytearray(_n_bytes(address))
    _copy(address, (c_char * len(buffer)).from_buffer(buffer), 0, len(buffer))
    return np.ndarray(tuple(tensor.shape)[::-1], dtype, buffer, strides=tuple(tensor.strides)[::-1])


def _name(tensor: _Tensor) -> str:
    """Of a weight; a copy of it on another device is called `DEVICE#NAME#N`."""
    parts: list[str] = tensor.name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def calibrate(
    model: LlamaModel, text: str, n_threads: int, on_progress: Callable[[float], None]
) -> tuple[Sums, int, int]:
    """What an importance matrix of `model` over `text` holds, the number of pieces and their length.

    Raises ModelUnavailable, and BadRequest for a text that is too short or that the model cannot read.
    """
    n_piece = min(PIECE_TOKENS, model.n_ctx_train or PIECE_TOKENS)
    tokens = model.vocab.tokenize(text, add_special=True, parse_special=False)
    n_pieces = len(tokens) // n_piece
    if not n_pieces:
        raise BadRequest(f"the text has {len(tokens)} tokens: {n_piece} are the least, and 50,000 are a good number")
    first = model.vocab.bos_token() if llama.llama_vocab_get_add_bos(model.vocab.pointer) else None
    collector = Collector()
    params = context_params(n_piece, _ROWS, 1, n_threads)
    params.cb_eval = collector.callback
    backend = LlamaBackend(model, params, n_outputs=_ROWS)
    try:
        for index in range(n_pieces):
            piece = tokens[index * n_piece : (index + 1) * n_piece]
            _compute(backend, piece if first is None else [first, *piece[1:]], collector)
            on_progress((index + 1) / n_pieces)
    finally:
        backend.close()
    return collector.sums(), n_pieces, n_piece


def _compute(backend: LlamaBackend, tokens: Sequence[int], collector: Collector) -> None:
    """Read `tokens`, all with logits: the last layer computes only rows that have them."""
    backend.forget(0, 0)
    for start in range(0, len(tokens), _ROWS):
        rows = tokens[start : start + _ROWS]
        backend.batch.clear()
        backend.batch.add(rows, start, 0, n_outputs=len(rows))
        status = backend.decode()
        if collector.failure is not None:
            raise collector.failure
        if status != 0:
            raise ModelUnavailable(f"the engine could not compute the text: {log.reason()}")


def main(arguments: Sequence[str]) -> int:
    """`calibrate MODEL TEXT TARGET THREADS`; returns the exit code.

    Writes the share that is done to stdout, a line each time, and the reason of a failure to stderr.
    """
    path, text_path, target, n_threads = arguments

    def show(share: float) -> None:
        sys.stdout.write(f"{share:.3f}\n")
        sys.stdout.flush()

    try:
        text = Path(text_path).read_text(encoding="utf-8")
        words = reader.contents(Path(path)).words
        model = LlamaModel(Path(path), loading.trusted_backend(None, None), repacks=False, words=words)
        sums, n_pieces, n_piece = calibrate(model, text, int(n_threads), show)
        importance.write(Path(target), sums, dataset=Path(text_path).name, n_pieces=n_pieces, n_piece=n_piece)
    except UnicodeDecodeError:
        sys.stderr.write("the text is not in UTF-8\n")
    except (BadRequest, ModelUnavailable) as error:
        sys.stderr.write(f"{error.message}\n")
    except OSError as exc:
        sys.stderr.write(f"{exc.filename}: {exc.strerror}\n")
    else:
        return 0
    return 1
