"""Takes the tensors of a checkpoint row by row of a family's table, and keeps what becomes of them in a GGUF.

Each tensor must be there, of the shape that the row and the sizes imply, and none may be left over.
"""

import re
from dataclasses import replace

from shimmy.formats.convert.families.family import Family, Row, Runs
from shimmy.formats.convert.hyperparameters import MAX_WIDTH, Hyperparameters
from shimmy.formats.convert.tied_head import TiedHead, other_head
from shimmy.formats.convert.transforms import ELEMENT_BYTES, TensorOutput, TensorSlice, Transform
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.writer import GGML_CODES, TensorInfo
from shimmy.formats.quantised.stored import (
    Holding,
    Scheme,
    StoredMatrix,
    StoredRows,
    Tensors,
    is_plain,
    missing,
    with_matrices,
)
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, shown

CODES = {"F32": 0, "F16": 1, "BF16": 30}  # ggml_type
_Pieces = tuple[TensorSlice | StoredRows, ...]
# llama.cpp adds and multiplies with these in F32 only, as with all that has one dimension.
_ALWAYS_F32 = (
    *("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "_exps.bias"),
    *("exp_probs_b.bias", "shortconv.conv.weight", "ssm_conv1d.weight", "ffn_gate_inp_shexp.weight"),
    *("altup_correct_coef.weight", "altup_predict_coef.weight", "indexer.proj.weight", ".ssm_a"),
    *("indexer.q_proj.weight", "indexer.k_proj.weight"),  # whose blocks are to be those of the model
    *("ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
)
# Whose head are the embeddings for llama.cpp, or the numbers beside the embeddings of which are for both or neither.
_ALWAYS_TIED = {"bitnet", "cohere2", "command-r", "falcon-h1", "gemma", "gemma2"}
# Weights that some architectures multiply with a number beside them: the product is computed by llama.cpp.
_SCALED_ATTENTION = re.compile(r"blk\.\d+\.attn_(?:q|k|v|qkv|output)\.weight")
_SCALED_FEED_FORWARD = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.weight")
_SCALED_EXPERTS = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)_exps\.weight")
_SCALED = {
    "llama": (_SCALED_ATTENTION, _SCALED_FEED_FORWARD, _SCALED_EXPERTS),
    **dict.fromkeys(("qwen3", "granite", "mistral3"), (_SCALED_ATTENTION, _SCALED_FEED_FORWARD)),
    "qwen3moe": (_SCALED_ATTENTION, _SCALED_EXPERTS),
    **dict.fromkeys(("qwen2", "gemma", "gemma2", "gemma3", "phi3", "smollm3"), (_SCALED_ATTENTION,)),
}  # fmt: skip


class TensorTable:
    """Takes tensors of a checkpoint, row by row of the family's table, and keeps what becomes of them."""

    def __init__(
        self,
        tensors: Tensors,
        scheme: Scheme | None,
        architecture: str,
        values: Hyperparameters,
        sizes: dict[str, int],
    ) -> None:
        self.outputs: list[TensorOutput] = []
        self.numbers: dict[str, list[CheckpointTensor]] = {}  # single ones, by their keys in the metadata
        self.tied_head: TiedHead | None = None
        self._tensors = tensors
        self._scheme = scheme
        self._stored: set[str] = set()  # modules whose weights are quantised
        self._scaled = _SCALED.get(architecture, ())
        self._has_own_head = architecture not in _ALWAYS_TIED
        self._embeddings: CheckpointTensor | None = None
        self._values = values
        self._sizes = sizes

    def add_embeddings(self, row: Row) -> None:
        tensor = self._embeddings = self._tensors.get(f"{row.source}.weight")
        if tensor is not None and tensor.shape:
            self._sizes["V"] = tensor.shape[0]
        self.add(row, 0)

    def add_head(self, row: Row) -> None:
        """What the last layer's vectors are compared with: the embeddings again, where both are tied.

        A head that is there nevertheless counts where it differs, as in transformers 5.
        """
        name = f"{row.source}.weight"
        is_tied = self._values.get("tie_word_embeddings")
        head, embeddings = self._tensors.get(name), self._embeddings
        if is_tied is True and head is not None and embeddings is not None:
            if (head.dtype, head.shape) == (embeddings.dtype, embeddings.shape):
                self.tied_head = TiedHead(name, row.target, head, embeddings, self._has_own_head)
            elif not self._has_own_head:
                raise other_head(name)
        if is_tied is True and not self._has_own_head:
            self._tensors.use(name)
        elif self._tensors.has_module(row.source):
            self.add(row, 0)
        elif is_tied is False and not str((self._values.get("architectures") or [""])[0]).endswith("Model"):
            raise missing(name)

    def _add_number(self, row: Row, layer: int) -> None:
        name = row.source.replace("#", str(layer))
        tensor = self._take(name, tuple(self._sizes[letter] for letter in row.shape))
        if tensor is None:
            raise missing(name)
        self.numbers.setdefault(row.target, []).append(tensor)

    def add(self, row: Row, layer: int) -> None:
        if row.is_metadata:
            self._add_number(row, layer)
            return
        row = self._as_mlx_has_it(row, layer)
        sizes, n_heads = self._sizes, self._sizes["N" if row.shape[0] == "K" else "H"]
        target = row.target.replace("#", str(layer))
        pieces = self._multiplied(row, target, self._pieces(row, layer))
        shape = tuple(sizes[letter] for letter in row.shape)
        columns = () if row.columns is None else tuple(row.columns(sizes))
        if row.transform is Transform.TRANSPOSE and isinstance(pieces[0], StoredRows):
            raise Unconvertible(f"its tensor `{target}` is quantised, which is not supported for this architecture")
        kept = tuple(sizes[letter] for letter in row.kept)
        self._keep(target, shape, pieces, row.transform, n_heads, columns=columns, kept=kept)
        if row.bias == "none" or not (row.bias == "required" or self._values.flag(row.bias)):
            return
        name = f"{row.source}.bias".replace("#", str(layer))
        tensor = self._take(name, (sizes[row.shape[-1 if row.transform is Transform.TRANSPOSE else 0]],))
        if tensor is None:
            raise missing(name)
        transform = Transform.COPY if row.transform is Transform.TRANSPOSE else row.transform
        bias_target = target.removesuffix(".weight") + ".bias"
        self._keep(bias_target, tensor.shape, (TensorSlice(tensor, 0, tensor.n_bytes),), transform, n_heads)

    def _as_mlx_has_it(self, row: Row, layer: int) -> Row:
        """The same row, with all of the target in one module where there is such a one."""
        stacked = row.stacked.replace("#", str(layer))
        if row.is_named_in_full or not stacked or not self._tensors.has_module(stacked):
            return row
        if (
            self._scheme is not None
            and not self._scheme.stacks_experts
            and not is_plain(f"{stacked}.weight", self._tensors)
        ):
            if row.fused is not None and row.fused[0] == row.stacked:  # under one name, they may be either
                return row
            raise Unconvertible(f"the experts of its `{stacked}` are stacked, which its quantisation cannot be")
        transform = Transform.COPY if row.transform is Transform.TRANSPOSE_RUNS else row.transform
        return replace(row, source=row.stacked, transform=transform, fused=None, runs=None, taken="")

    def _keep(
        self,
        target: str,
        shape: tuple[int, ...],
        pieces: _Pieces,
        transform: Transform,
        n_heads: int,
        *,
        columns: Runs = (),
        kept: tuple[int, ...] = (),
    ) -> None:
        stored = tuple(piece for piece in pieces if isinstance(piece, StoredRows))
        plain = tuple(piece for piece in pieces if isinstance(piece, TensorSlice))
        if stored:
            self._keep_stored(target, shape, stored, transform, n_heads, columns)
            if plain:
                raise Unconvertible(f"some of the experts of `{target}` are quantised, and others are not")
            return
        dtypes = {piece.tensor.dtype for piece in plain}
        if len(dtypes) > 1 and transform is not Transform.PRODUCT:
            raise Unconvertible(f"the experts of `{target}` have several types")
        dtype = plain[0].tensor.dtype
        is_f32 = len(shape) == 1 or target.endswith(_ALWAYS_F32) or any(piece.scale != 1 for piece in plain)
        if transform is Transform.SQUEEZE:
            kept = tuple(size for size in shape if size > 1)
        ggml_shape = shape if transform is Transform.TRANSPOSE else (kept or shape)[::-1]
        info = TensorInfo(target, ggml_shape, CODES["F32" if is_f32 else dtype])
        self.outputs.append(TensorOutput(info, plain, transform, n_heads, columns=columns))

    def _keep_stored(
        self,
        target: str,
        shape: tuple[int, ...],
        stored: tuple[StoredRows, ...],
        transform: Transform,
        n_heads: int,
        columns: Runs,
    ) -> None:
        """Quantised weights, and the number beside them where they have one, or may get one, and the engine multiplies
        with such numbers."""
        is_scaled = any(form.fullmatch(target) for form in self._scaled)
        is_apart = is_scaled and all(rows.matrix.apart for rows in stored)
        may_be_divided = is_scaled and all(rows.matrix.may_be_divided for rows in stored)
        if is_apart:
            stored = with_matrices(stored, StoredMatrix.divided)
        elif not may_be_divided:
            stored = with_matrices(stored, StoredMatrix.whole)
        holding = Holding(stored[0].matrix.expected, stored[0].matrix.error)
        for rows in stored:
            holding = holding.along_with(Holding(rows.matrix.expected, rows.matrix.error))
        kept = tuple(size for size in shape if size > 1) if transform is Transform.SQUEEZE else shape
        info = TensorInfo(target, kept[::-1], CODES["F32"])
        output = TensorOutput(info, transform=transform, n_heads=n_heads, stored=stored, columns=columns)
        if not target.endswith(_ALWAYS_F32):
            kind = holding.plain().kind if output.is_reordered else holding.kind
            output = replace(output, info=replace(info, code=GGML_CODES[kind]))
        self.outputs.append(output)
        if is_apart or may_be_divided:
            beside = TensorInfo(target.removesuffix(".weight") + ".scale", (len(stored),), CODES["F32"])
            self.outputs.append(TensorOutput(beside, stored=stored))

    def _multiplied(self, row: Row, target: str, pieces: _Pieces) -> _Pieces:
        """The pieces with the numbers that they are multiplied with."""
        factors = [] if row.factors is None else [*row.factors(self._values)]
        if all(factor == 1 for factor in factors):
            return pieces
        if len(factors) == 1:
            factors *= len(pieces)
        multiplied = []
        for piece, factor in zip(pieces, factors, strict=True):
            if isinstance(piece, StoredRows):
                raise Unconvertible(f"its tensor `{target}` is quantised, which is not supported for this architecture")
            multiplied.append(replace(piece, scale=factor))
        return tuple(multiplied)

    def _pieces(self, row: Row, layer: int) -> _Pieces:
        source = (row.source if row.is_named_in_full else f"{row.source}.weight").replace("#", str(layer))
        shape = tuple(self._sizes.get(letter, 0) for letter in row.taken or row.shape)
        if row.is_named_in_full and row.stacked:
            piece = self._piece(row.stacked.replace("#", str(layer)), shape)
            if piece is not None:
                return (piece,)
        if row.is_named_in_full and row.fused is not None:
            return self._alternating_piece(source, shape, row.fused)
        if row.is_padded:
            return self._first_numbers(source, shape)
        if row.times:
            return self._factors(source, row.times.replace("#", str(layer)), shape)
        if "@" not in source:
            piece = self._piece(source, shape)
            if piece is None:
                raise self._missing(row, source, layer)
            return (piece,) if row.runs is None else _cut(piece, source, row.runs(self._sizes))
        if row.fused is not None and not self._tensors.has_module(source.removesuffix(".weight").replace("@", "0")):
            return self._fused_pieces(row, layer, shape)
        pieces = []
        for expert in range(shape[0]):
            name = source.replace("@", str(expert))
            piece = self._piece(name, shape[1:])
            if piece is None:
                raise missing(name)
            pieces.append(piece)
        return tuple(pieces)

    def _missing(self, row: Row, name: str, layer: int) -> Unconvertible:
        if row.not_beside and self._tensors.has_module(row.not_beside.replace("#", str(layer))):
            return Unconvertible(
                f"its tensor `{name}` is missing: mlx-lm leaves it out, and without it other experts are chosen; take "
                "the model that this one was converted from"
            )
        return missing(name)

    def _first_numbers(self, name: str, shape: tuple[int, ...]) -> _Pieces:
        """Of a tensor with more of them."""
        found = self._tensors.get(name)
        is_longer = found is not None and len(found.shape) == 1 and found.shape[0] > shape[0]
        tensor = self._take(name, found.shape if found is not None and is_longer else shape)
        if tensor is None:
            raise missing(name)
        return (TensorSlice(tensor, 0, tensor.n_bytes // tensor.shape[0] * shape[0]),)

    def _factors(self, name: str, other: str, shape: tuple[int, ...]) -> _Pieces:
        """Two tensors of as many numbers, the second of which has them in a row of a matrix."""
        pieces = []
        for full_name, its_shape in ((name, shape), (f"{other}.weight", (1, *shape))):
            tensor = self._take(full_name, its_shape)
            if tensor is None:
                raise missing(full_name)
            pieces.append(TensorSlice(tensor, 0, tensor.n_bytes))
        return tuple(pieces)

    def _piece(self, name: str, shape: tuple[int, ...]) -> TensorSlice | StoredRows | None:
        """The whole weight `name`; None where it is not there."""
        module = name.removesuffix(".weight")
        may_be_stored = self._scheme is not None and (len(shape) == 2 or self._scheme.stacks_experts)
        if self._scheme is not None and may_be_stored and self._tensors.has_module(module):
            matrix = self._scheme.find(module, shape, self._tensors)
            if matrix is not None:
                self._stored.add(module)
                return StoredRows(matrix, 0, matrix.shape[0])
        tensor = self._take(name, shape)
        return None if tensor is None else TensorSlice(tensor, 0, tensor.n_bytes)

    def _fused_pieces(self, row: Row, layer: int, shape: tuple[int, ...]) -> _Pieces:
        assert row.fused is not None
        source, part, n_parts = row.fused
        name = source.replace("#", str(layer))
        n_experts, n_rows, n_columns = shape
        if self._scheme is not None and self._tensors.has_module(name):
            matrix = self._scheme.find(name, (n_experts * n_parts * n_rows, n_columns), self._tensors)
            if matrix is not None and (row.takes_turns or n_parts == 1):
                return (StoredRows(matrix, part, n_experts * n_rows, stride=n_parts),)
        if row.takes_turns:
            raise Unconvertible(f"its tensor `{name}` is not in MXFP4, which is all that is supported")
        sizes = n_parts * n_rows, n_columns
        is_turned = self._is_turned(row, name, sizes)
        found = self._tensors.get(name)
        if is_turned and self._scheme is not None and found is not None and found.dtype not in CODES:
            raise Unconvertible(f"the experts of its `{name}` are quantised as they lie, by columns: not supported")
        tensor = self._take(name, (n_experts, *(sizes[::-1] if is_turned else sizes)))
        if tensor is None:
            raise missing(f"{row.source}.weight".replace("#", str(layer)).replace("@", "0"))
        n_bytes = n_rows * n_columns * ELEMENT_BYTES[tensor.dtype]
        if is_turned:  # each of its rows has one of each part
            whole, width = n_parts * n_bytes, n_bytes // n_columns
            starts = range(part * width, n_experts * whole, whole)
            return tuple(TensorSlice(tensor, start, whole - (n_parts - 1) * width, is_turned=True) for start in starts)
        return tuple(TensorSlice(tensor, (expert * n_parts + part) * n_bytes, n_bytes) for expert in range(n_experts))

    def _is_turned(self, row: Row, name: str, sizes: tuple[int, int]) -> bool:
        """Whether experts that are to have these numbers of rows and columns are stored by their columns."""
        tensor = self._tensors.get(name)
        if row.turned != "either" or tensor is None:
            return row.turned == "always"
        if sizes[0] == sizes[1]:
            raise Unconvertible(f"the experts of its `{name}` are square: nothing says which of their sides is which")
        return tensor.shape[1:] == sizes[::-1]

    def _alternating_piece(self, name: str, shape: tuple[int, ...], fused: tuple[str, int, int]) -> _Pieces:
        """Every n-th number of a tensor."""
        _, part, n_parts = fused
        tensor = self._take(name, (*shape[:-1], shape[-1] * n_parts))
        if tensor is None:
            raise missing(name)
        start = part * ELEMENT_BYTES[tensor.dtype]
        return (TensorSlice(tensor, start, tensor.n_bytes - start, stride=n_parts),)

    def _take(self, name: str, shape: tuple[int, ...]) -> CheckpointTensor | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if 1 in shape and [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:
            tensor = replace(tensor, shape=shape)  # the same numbers in the same order
        if tensor.shape != shape or not tensor.n_bytes:
            raise Unconvertible(
                f"its tensor `{name}` has the shape {[*tensor.shape]}; its config.json implies {[*shape]}"
            )
        if tensor.dtype not in CODES:
            raise Unconvertible(f"its tensor `{name}` is in {tensor.dtype}; what works are BF16, F16 and F32")
        self._tensors.use(name)
        return tensor

    def zero_biases(self) -> dict[str, CheckpointTensor]:
        """Biases of quantised weights that the architecture has not: AutoGPTQ writes zeros for all."""
        found = {}
        for name in [name for name in self._tensors.left if name.removesuffix(".bias") in self._stored]:
            tensor = self._tensors.get(name)
            if tensor is not None and tensor.dtype in CODES and tensor.n_bytes <= 4 * MAX_WIDTH:
                self._tensors.use(name)
                found[name] = tensor
        return found

    def refuse_others(self, family: Family) -> None:
        """A tensor that is left would be missing from what the engine computes."""
        ignored = () if self._scheme is None else self._scheme.ignored_suffixes
        left = [name for name in self._tensors.left if not name.endswith(ignored or ("\n",))]
        if left:
            name = left[0]
            raise Unconvertible(f"its tensor `{shown(name)}` is not one that the architecture `{family.title}` has")


def _cut(piece: TensorSlice | StoredRows, name: str, runs: Runs) -> _Pieces:
    """Runs of rows of a whole tensor."""
    if isinstance(piece, StoredRows):
        if any(row % piece.matrix.row_step for run in runs for row in run):
            raise Unconvertible(f"its tensor `{shown(name)}` is quantised in blocks that do not end where its heads do")
        return tuple(replace(piece, first=first, n_rows=n_rows) for first, n_rows in runs)
    row_bytes = piece.n_bytes // piece.tensor.shape[0]
    return tuple(TensorSlice(piece.tensor, first * row_bytes, n_rows * row_bytes) for first, n_rows in runs)
