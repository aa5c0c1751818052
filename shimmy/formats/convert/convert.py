"""A folder in SafeTensors becomes a GGUF: the plan of it, and the streaming of it.

Knows the files of the folder; what a tensor becomes is known by `architectures` and `transforms`, and where the GGUF
lies and who makes it by `cache`.
"""

import contextlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shimmy.formats.convert import cache, settle_types
from shimmy.formats.convert.cache import Converted, Progress
from shimmy.formats.convert.converted import cache_name
from shimmy.formats.convert.families.table import family_of
from shimmy.formats.convert.recipe import Recipe, recipe, text_config
from shimmy.formats.convert.settle_types import Unpacker
from shimmy.formats.convert.transforms import ELEMENT_BYTES, TensorOutput, chunks, single_number
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.header import Array, GgufHeader, Value, describe
from shimmy.formats.gguf.writer import GgufType, Metadata, TensorInfo, data_size, write_file
from shimmy.formats.quantised.schemes import beside
from shimmy.formats.safetensors import huggingface
from shimmy.formats.safetensors.checkpoint import (
    Checkpoint,
    CheckpointTensor,
    TensorReader,
    read_folder,
    read_json,
    shown,
)
from shimmy.formats.safetensors.sentence_transformers import dense_matrices, pooling_type
from shimmy.formats.tokenizer.vocab import vocabulary

logger = logging.getLogger(__name__)

_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION
_FILE_TYPES = {  # llama_ftype
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "MXFP4": 38, "NVFP4": 39,
}  # fmt: skip
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}  # of Phi-3 and 3.5, whose tokenizer strips; Phi-4's does not


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What a folder becomes; everything but its vocabulary has been checked."""

    name: str
    architecture: str  # llama.cpp's name
    quantization: str  # the type of most weights, as GGUF headers name it
    n_params: int
    n_ctx_train: int  # what can be computed exactly; may be less than config.json says, with a notice
    size_bytes: int  # of all tensors in the GGUF; the vocabulary comes on top of it
    is_embedding: bool  # made for embeddings, not for text
    has_chat_template: bool
    recipe: Recipe
    config: Mapping[str, Any]
    checkpoint: Checkpoint

    @property
    def is_quantised(self) -> bool:
        """Whether some of its weights need an Unpacker."""
        return any(output.stored for output in self.recipe.outputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by their names in the GGUF, as that has them."""
        return {output.info.name: output.info.shape for output in self.recipe.outputs}

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person has to know of the GGUF."""
        return self.notices_for("")

    def notices_for(self, target_type: str) -> tuple[str, ...]:
        """The same where another type is made of it; '' is none."""
        return self.recipe.notices if target_type else self.recipe.notices + self.recipe.roundings

    def header(self) -> GgufHeader:
        """What the header of the GGUF will say, as far as a catalog wants to know it."""
        metadata = {
            key.encode(): _as_read(code, value) for key, code, value in [*_general(self, ()), *self.recipe.metadata]
        }
        metadata[f"{self.architecture}.vocab_size".encode()] = self.config.get("vocab_size")
        if self.has_chat_template:
            metadata[b"tokenizer.chat_template"] = None
        header = describe(metadata, len(self.recipe.outputs), self.n_params, self.size_bytes)
        return replace(header, is_embedding=self.is_embedding)


def plan(folder: Path) -> ConversionPlan:
    """What `folder` becomes. Reads headers and small JSON files only.

    Raises Unconvertible or InvalidSafetensors with the reason, OSError when a file cannot be read.
    """
    if (folder / huggingface.ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise Unconvertible("it is a LoRA adapter, which is converted for a model when it is loaded: see `--lora`")
    if not (folder / "config.json").exists():
        if (folder / huggingface.MISTRAL_CONFIG).exists():
            raise Unconvertible(
                "it is in Mistral's own format (`params.json`); most of its repositories have the same model with a "
                "`config.json`, which works"
            )
        raise Unconvertible("it has no `config.json`, which says what its weights are")
    config = text_config(beside(folder, read_json(folder / "config.json", huggingface.MAX_CONFIG_BYTES)))
    family = family_of(config)
    checkpoint = read_folder(folder)
    pooling = pooling_type(folder)
    found = recipe(family, checkpoint, config, pooling, dense_matrices(folder))
    infos = [output.info for output in found.outputs]
    return ConversionPlan(
        name=huggingface.name(folder),
        architecture=found.architecture,
        quantization=_type_of_most(found.outputs),
        n_params=sum(info.n_elements for info in infos),
        n_ctx_train=found.n_ctx,
        size_bytes=data_size(infos),
        is_embedding=family.is_encoder or pooling is not None,
        has_chat_template=_has_chat_template(folder),
        recipe=found,
        config=config if found.vocab_size is None else config | {"vocab_size": found.vocab_size},
        checkpoint=checkpoint,
    )


def convert(
    folder: Path,
    target: Path,
    on_progress: Progress,
    *,
    found: ConversionPlan | None = None,
    target_type: str = "",
    unpacker: Callable[[], Unpacker] | None = None,
) -> ConversionPlan:
    """Write the GGUF of `folder` to `target`, replacing it. What `on_progress` raises ends the conversion. `found` is
    the plan of the folder, where there is one already.

    Raises what `plan` raises, and Unconvertible when there is no room. Memory stays within a few chunks of tensors,
    their infos and the vocabulary. `target_type` is what the file will be made into, for `prepared`.
    """
    found, unpack = prepared(found or plan(folder), target_type, unpacker)
    with cache.part_of(target, found.size_bytes, on_progress) as part:
        if part is not None:
            _write(folder, found, part, on_progress, unpack)
    return found


def prepared(
    found: ConversionPlan, target_type: str, unpacker: Callable[[], Unpacker] | None
) -> tuple[ConversionPlan, Unpacker | None]:
    """The plan with the types that the numbers of quantised weights need; all scales have been checked then. And
    without a head that should be the embeddings, and is.

    Where something else is made of the GGUF, they become F16, or F32. Raises Unconvertible; without an unpacker, for
    any quantised weight.
    """
    found = _with_one_head(found)
    if not found.is_quantised:
        return found, None
    if unpacker is None:
        raise Unconvertible("its weights are quantised, and nothing here can unpack them")
    unpack = unpacker()
    with TensorReader() as reader:
        for name, tensor in found.recipe.zeros.items():
            _refuse_numbers(name, tensor, reader)
    outputs = settle_types.settled(found.recipe.outputs, target_type, unpack)
    infos = [output.info for output in outputs]
    settled_recipe = replace(found.recipe, outputs=outputs)
    quantization = _type_of_most(outputs)
    return replace(found, quantization=quantization, size_bytes=data_size(infos), recipe=settled_recipe), unpack


def _with_one_head(found: ConversionPlan) -> ConversionPlan:
    """Without the head where it is the embeddings again."""
    tied = found.recipe.tied_head
    if tied is None or not tied.has_to_go():
        return found
    outputs = tuple(output for output in found.recipe.outputs if output.info.name != tied.target)
    infos = [output.info for output in outputs]
    made = replace(found.recipe, outputs=outputs, tied_head=None)
    return replace(found, recipe=made, n_params=sum(info.n_elements for info in infos), size_bytes=data_size(infos))


def _refuse_numbers(name: str, tensor: CheckpointTensor, reader: TensorReader) -> None:
    """Raise Unconvertible unless all bytes of a small tensor are 0."""
    content = bytearray(tensor.n_bytes)
    reader.read(tensor, 0, memoryview(content))
    if any(content):
        raise Unconvertible(f"its tensor `{shown(name)}` is not one that the architecture has, and is not zero")


def _type_of_most(outputs: Sequence[TensorOutput]) -> str:
    """The type of most weights, as GGUF headers name it."""
    weights = Counter(dict.fromkeys(_FILE_TYPES, 0))
    for output in outputs:
        if len(output.info.shape) > 1:
            weights[output.dtype if output.pieces else output.info.kind] += output.info.n_elements
    return max(weights, key=lambda name: weights[name])


def cached(
    folder: Path,
    cache_folder: Path | None,
    on_progress: Progress,
    *,
    found: ConversionPlan | None = None,
    target_type: str = "",
    matrix: str = "",
    finish: Callable[[Path, Path], None] | None = None,
    unpacker: Callable[[], Unpacker] | None = None,
) -> Converted:
    """The GGUF of `folder`, made now or found in the cache. Raises what `convert` raises.

    `finish(lossless, target)` makes the file of `target_type` out of the lossless one; without it, that one is it. The
    first half of the progress is the lossless one's, and the second one `finish` reports.
    `found` is the plan of the folder, where there is one already, and `matrix` the digest of the importance matrix that
    the file goes by.
    Where the cache cannot be written, the file is made in memory (Linux only).
    """
    target = None if cache_folder is None else cache_folder / cache_name(folder, target_type, matrix)
    if target is not None and cache.is_finished(target):
        on_progress(1.0)
        return Converted(target)
    settled, unpack = prepared(found or plan(folder), target_type, unpacker)

    def write(path: Path) -> None:
        _make(folder, settled, path, on_progress, finish, unpack)

    return cache.make(target, settled.size_bytes, write, on_progress)


def _has_chat_template(folder: Path) -> bool:
    """Whether there seems to be one: the conversion reads it."""
    with contextlib.suppress(OSError):
        if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
            return True
        path = folder / "tokenizer_config.json"
        if path.is_file():
            with path.open("rb") as file:
                return b'"chat_template"' in file.read(huggingface.MAX_CONFIG_BYTES)
    return False


def _as_read(code: GgufType, value: Any) -> Value:
    """A value as `gguf` reads it back."""
    if code is GgufType.STRING:
        return str(value).encode()
    if code is GgufType.ARRAY:
        kind, items = value
        return Array(len(items), () if kind is GgufType.STRING else tuple(items))
    number: int | float = value
    return number


def _make(
    folder: Path,
    found: ConversionPlan,
    target: Path,
    on_progress: Progress,
    finish: Callable[[Path, Path], None] | None,
    unpack: Unpacker | None,
) -> None:
    if finish is None:
        _write(folder, found, target, on_progress, unpack)
        return

    def half(share: float) -> None:
        on_progress(share / 2)

    if cache.is_in_memory(target):
        lossless = cache.in_memory(lambda path: _write(folder, found, path, half, unpack))
        try:
            finish(lossless.path, target)
        finally:
            assert lossless.descriptor is not None
            os.close(lossless.descriptor)
        return
    path = target.with_name(f"{target.name}{cache.LOSSLESS}")
    try:
        _write(folder, found, path, half, unpack)
        finish(path, target)
    finally:
        path.unlink(missing_ok=True)


def _write(folder: Path, found: ConversionPlan, target: Path, on_progress: Progress, unpack: Unpacker | None) -> None:
    tokenizer = vocabulary(folder, found.config)
    tokens: list[str] = next((value[1] for key, _, value in tokenizer if key == "tokenizer.ggml.tokens"), [])
    outputs = [_fitted(output, len(tokens)) for output in found.recipe.outputs]
    vocabulary_metadata = _sized(found, tokenizer, len(tokens))
    metadata = [*_general(found, tokens), *found.recipe.metadata, *vocabulary_metadata]
    with TensorReader() as reader:
        metadata += _lists(found, reader)
    tensors = [(output.info, _content(output, unpack)) for output in outputs]
    try:
        write_file(target, metadata, tensors, on_progress, 1 if unpack is None else unpack.n_threads(outputs))
    finally:
        if unpack is not None:
            unpack.end()


def _content(output: TensorOutput, unpack: Unpacker | None) -> Iterator[memoryview]:
    """The bytes of a tensor, for one thread: a reader is not for more."""
    with TensorReader() as reader:
        yield from (unpack.chunks if unpack is not None and output.stored else chunks)(output, reader)


def _lists(found: ConversionPlan, reader: TensorReader) -> Metadata:
    """Metadata that a checkpoint has in its tensors."""
    entries: Metadata = []
    for key, tensors in found.recipe.numbers.items():
        numbers = [single_number(tensor, reader) for tensor in tensors]
        if not all(map(math.isfinite, numbers)):
            raise Unconvertible(f"one of its numbers `{key}` is infinite, or none")
        entries.append((key, GgufType.ARRAY, (GgufType.FLOAT32, numbers)))
    return entries


def _general(found: ConversionPlan, tokens: Sequence[str]) -> Metadata:
    # llama.cpp goes by the name to strip spaces behind special tokens, and fails when it does not find these four.
    name = re.sub("(?i)phi-?3", "Phi 3", found.name.encode("utf-8", "replace").decode())
    if found.architecture == "phi3" and set(tokens) >= _PHI3_TOKENS:
        name += " (Phi-3)"
    return [
        ("general.architecture", GgufType.STRING, found.architecture),
        ("general.type", GgufType.STRING, "model"),
        ("general.name", GgufType.STRING, name),
        ("general.file_type", GgufType.UINT32, _FILE_TYPES[found.quantization]),
        ("general.quantization_version", GgufType.UINT32, _QUANTISATION_VERSION),
    ]


def _sized(found: ConversionPlan, tokenizer: Metadata, n_tokens: int) -> Metadata:
    """The vocabulary, with the numbers of tokens and of their types, which are the model's."""
    keys = {key for key, _, _ in tokenizer}
    sizes = {f"{found.architecture}.vocab_size": n_tokens}
    for output in found.recipe.outputs:
        if output.info.name == "token_types.weight":
            sizes["tokenizer.ggml.token_type_count"] = output.info.shape[1]
    return [*tokenizer, *((key, GgufType.UINT32, size) for key, size in sizes.items() if key not in keys)]


def _fitted(output: TensorOutput, n_tokens: int) -> TensorOutput:
    """Without the rows behind the vocabulary, which only make the number of rows a round one."""
    if output.info.name not in {"token_embd.weight", "output.weight", "per_layer_token_embd.weight"}:
        return output
    row_length, n_rows = output.info.shape
    if n_rows < n_tokens:
        raise Unconvertible(f"its vocabulary has {n_tokens} tokens, and only {n_rows} of them have embeddings")
    info = TensorInfo(output.info.name, (row_length, n_tokens), output.info.code)
    if output.stored:
        return replace(output, info=info, stored=(replace(output.stored[0], n_rows=n_tokens),))
    (piece,) = output.pieces
    n_bytes = row_length * n_tokens * ELEMENT_BYTES[piece.tensor.dtype]
    return replace(output, info=info, pieces=(replace(piece, n_bytes=n_bytes),))
