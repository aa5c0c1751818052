"""A folder in SafeTensors becomes a GGUF: the plan of it, the streaming of it, and the cache of what was made.

Knows files, locks and disks; what a tensor becomes is known by `architectures` and `transforms`. What is half done is
never seen: a file is written as `*.part` and renamed. That file is also the lock, so that of several processes that
want the same model one makes it and the others wait for it, and a killed one leaves nothing that looks like a model.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from shimmy.formats import huggingface
from shimmy.formats.architectures import Recipe, family_of, recipe, text_config
from shimmy.formats.gguf import InvalidGguf, read_header
from shimmy.formats.gguf_writer import GgufType, Metadata, TensorInfo, data_size, encode_header, write_tensor
from shimmy.formats.pooling import config_path, pooling_type
from shimmy.formats.safetensors import Checkpoint, Reader, read_folder, read_json
from shimmy.formats.transforms import Output, chunks
from shimmy.formats.unconvertible import Unconvertible
from shimmy.formats.vocab import vocabulary

CONVERTER_VERSION = 1  # another one makes another file of the same folder
MAX_CONFIG_BYTES = 1 << 20

_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama_ftype
_SOURCE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_POLL_S = 0.1
# llama.cpp takes a model of such a name to have the tokens of Phi-3, and cannot load it without them. What it does with
# them, the normalizer does by the tokenizer's own word.
_PHI_3 = re.compile("(phi)-?(3)", re.IGNORECASE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[float], None]  # called with the share that is done, 0 to 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a folder becomes; everything but its vocabulary has been checked."""

    name: str
    architecture: str  # llama.cpp's name
    quantization: str  # the type of most weights, as GGUF headers name it
    n_params: int
    n_ctx_train: int  # what can be computed exactly; may be less than config.json says, with a notice
    size_bytes: int  # of all tensors in the GGUF; the vocabulary comes on top of it
    notices: tuple[str, ...]  # for a person
    is_embedding: bool  # made for embeddings, not for text
    recipe: Recipe
    config: Mapping[str, Any]
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished GGUF, in the cache or, where nothing can be written, in memory."""

    path: Path
    descriptor: int | None = (
        None  # of the memory behind `path`; open for as long as `path` is needed, the caller closes it
    )


def plan(folder: Path) -> Plan:
    """What `folder` becomes. Reads headers and small JSON files only.

    Raises Unconvertible or InvalidSafetensors with the reason, OSError when a file cannot be read.
    """
    config = text_config(read_json(folder / "config.json", MAX_CONFIG_BYTES))
    family = family_of(config)
    checkpoint = read_folder(folder)
    pooling = pooling_type(folder)
    found = recipe(family, checkpoint, config, pooling)
    infos = [output.info for output in found.outputs]
    weights = Counter(dict.fromkeys(_FILE_TYPES, 0))
    for output in found.outputs:
        if output.pieces and len(output.info.shape) > 1:
            weights[output.dtype] += output.info.n_elements
    return Plan(
        name=huggingface.name(folder),
        architecture=found.architecture,
        quantization=max(weights, key=lambda name: weights[name]),
        n_params=sum(info.n_elements for info in infos),
        n_ctx_train=found.n_ctx,
        size_bytes=data_size(infos),
        notices=found.notices,
        is_embedding=found.architecture == "bert" or pooling is not None,
        recipe=found,
        config=config,
        checkpoint=checkpoint,
    )


def convert(folder: Path, target: Path, on_progress: Progress) -> Plan:
    """Write the GGUF of `folder` to `target`, replacing it. What `on_progress` raises ends the conversion.

    Raises what `plan` raises, and Unconvertible when there is no room. Memory stays within a few chunks of tensors,
    their infos and the vocabulary.
    """
    found = plan(folder)
    with _part_of(target, found, on_progress) as part:
        if part is not None:
            _write(folder, found, part, on_progress)
    return found


def cached(
    folder: Path,
    cache_folder: Path | None,
    on_progress: Progress,
    *,
    target_type: str = "",
    finish: Callable[[Path, Path], None] | None = None,
) -> Converted:
    """The GGUF of `folder`, made now or found in the cache. Raises what `convert` raises.

    `finish(lossless, target)` makes the file of `target_type` out of the lossless one; without it, that one is it.
    Where the cache cannot be written, the file is made in memory (Linux only).
    """
    if cache_folder is None:
        return _in_memory(folder, on_progress, finish)
    target = cache_folder / cache_name(folder, target_type)
    if not _is_finished(target):
        found = plan(folder)
        if not _is_writable(cache_folder):
            return _in_memory(folder, on_progress, finish)
        with _part_of(target, found, on_progress, lambda: _is_finished(target)) as part:
            if part is not None:
                _make(folder, found, part, on_progress, finish)
        _forget_others(target)
    on_progress(1.0)
    return Converted(target)


def cache_name(folder: Path, target_type: str = "") -> str:
    """The file's name in the cache: of the folder's place, then of all that its GGUF depends on."""
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    pooling = config_path(folder)
    paths = [path for path in folder.iterdir() if path.name.endswith(_SOURCE_SUFFIXES)]
    paths += [pooling] if pooling is not None and pooling.exists() else []
    sources = []
    for path in sorted(paths):
        status = path.stat()
        # The time of the last change of the inode tells apart what was unpacked with one time for all.
        sources.append([str(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    key = json.dumps([CONVERTER_VERSION, target_type, sources])
    return f"{place}-{target_type or 'lossless'}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.gguf"


def _is_finished(target: Path) -> bool:
    """Whether the file is there and whole: after a power failure a renamed file may have lost its end."""
    try:
        read_header(target)
    except (OSError, InvalidGguf):
        return False
    return True


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _forget_others(target: Path) -> None:
    """Remove what was made of the same folder before it changed; who has it open keeps it."""
    place, kind, _ = target.name.split("-", 2)
    for other in target.parent.glob(f"{place}-{kind}-*.gguf"):
        if other != target:
            with contextlib.suppress(OSError):
                other.unlink()


# Locks and unfinished files.


@contextlib.contextmanager
def _part_of(
    target: Path, found: Plan, on_progress: Progress, is_done: Callable[[], bool] = lambda: False
) -> Iterator[Path | None]:
    """An empty file that becomes `target`, for this process alone; None when another one has done it meanwhile."""
    part = target.with_name(f"{target.name}.part")
    lock = _lock(part, found.size_bytes, on_progress, is_done)
    if lock is None:
        yield None
        return
    with lock:
        try:
            if shutil.disk_usage(part.parent).free < found.size_bytes:
                raise _no_room(part.parent, found.size_bytes)
            yield part
            part.replace(target)
        except BaseException as exc:
            part.unlink(missing_ok=True)
            if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
                raise _no_room(part.parent, found.size_bytes) from exc
            raise


def _lock(part: Path, size_bytes: int, on_progress: Progress, is_done: Callable[[], bool]) -> FileIO | None:
    """`part`, emptied and locked until it is closed. While another process has it, its size tells how far it is."""
    while not is_done():
        file = FileIO(part, "a")
        try:
            while not _try_lock(file):
                on_progress(min(0.99, os.fstat(file.fileno()).st_size / max(1, size_bytes)))
                time.sleep(_POLL_S)
            if _is_at(part, file):
                if is_done():
                    part.unlink()
                else:
                    file.truncate(0)  # what a killed process has left
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was renamed or removed by the one that had it before
    return None


def _try_lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _no_room(folder: Path, size_bytes: int) -> Unconvertible:
    return Unconvertible(
        f"its GGUF needs {size_bytes / 1e9:.1f} GB in `{folder}`, and there is no room for it: "
        "make room there, or choose a folder on a larger disk"
    )


def _in_memory(folder: Path, on_progress: Progress, finish: Callable[[Path, Path], None] | None) -> Converted:
    if not hasattr(os, "memfd_create"):
        raise Unconvertible("its GGUF has no place: the cache folder cannot be written")
    descriptor = os.memfd_create("shimmy")
    path = Path(f"/proc/self/fd/{descriptor}")
    try:
        _make(folder, plan(folder), path, on_progress, finish)
        on_progress(1.0)
    except BaseException:
        os.close(descriptor)
        raise
    return Converted(path, descriptor)


# Writing.


def _make(
    folder: Path, found: Plan, target: Path, on_progress: Progress, finish: Callable[[Path, Path], None] | None
) -> None:
    if finish is None:
        _write(folder, found, target, on_progress)
        return
    if target.parent == Path("/proc/self/fd"):
        lossless = _in_memory(folder, on_progress, None)
        try:
            finish(lossless.path, target)
        finally:
            assert lossless.descriptor is not None
            os.close(lossless.descriptor)
        return
    path = target.with_name(f"{target.name}.lossless")  # the lock of `target` is a lock of this one as well
    try:
        _write(folder, found, path, lambda share: on_progress(share / 2))
        finish(path, target)
    finally:
        path.unlink(missing_ok=True)


def _write(folder: Path, found: Plan, target: Path, on_progress: Progress) -> None:
    tokenizer = vocabulary(folder, found.config)
    n_tokens = next((len(value[1]) for key, _, value in tokenizer if key == "tokenizer.ggml.tokens"), 0)
    outputs = [_fitted(output, n_tokens) for output in found.recipe.outputs]
    infos = [output.info for output in outputs]
    header = encode_header([*_general(found), *found.recipe.metadata, *_sized(found, tokenizer, n_tokens)], infos)
    with FileIO(target, "w") as file, Reader() as reader:
        sink = _Sink(file, len(header) + data_size(infos), on_progress)
        sink.write(header)
        for output in outputs:
            write_tensor(sink, output.info, chunks(output, reader))


def _general(found: Plan) -> Metadata:
    return [
        ("general.architecture", GgufType.STRING, found.architecture),
        ("general.type", GgufType.STRING, "model"),
        ("general.name", GgufType.STRING, _PHI_3.sub(r"\1 \2", found.name.encode("utf-8", "replace").decode())),
        ("general.file_type", GgufType.UINT32, _FILE_TYPES[found.quantization]),
        ("general.quantization_version", GgufType.UINT32, _QUANTISATION_VERSION),
    ]


def _sized(found: Plan, tokenizer: Metadata, n_tokens: int) -> Metadata:
    """The vocabulary, with the numbers of tokens and of their types, which are the model's."""
    keys = {key for key, _, _ in tokenizer}
    sizes = {f"{found.architecture}.vocab_size": n_tokens}
    for output in found.recipe.outputs:
        if output.info.name == "token_types.weight":
            sizes["tokenizer.ggml.token_type_count"] = output.info.shape[1]
    return [*tokenizer, *((key, GgufType.UINT32, size) for key, size in sizes.items() if key not in keys)]


def _fitted(output: Output, n_tokens: int) -> Output:
    """Without the rows behind the vocabulary, which only make the number of rows a round one."""
    if output.info.name not in {"token_embd.weight", "output.weight"}:
        return output
    row_length, n_rows = output.info.shape
    if n_rows < n_tokens:
        raise Unconvertible(f"its vocabulary has {n_tokens} tokens, and only {n_rows} of them have embeddings")
    info = TensorInfo(output.info.name, (row_length, n_tokens), output.info.code)
    (piece,) = output.pieces
    return replace(output, info=info, pieces=(replace(piece, n_bytes=info.n_bytes),))


class _Sink:
    """Writes whole chunks to a file, and tells how far it is."""

    def __init__(self, file: FileIO, size_bytes: int, on_progress: Progress) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._n_done = 0
        self._on_progress = on_progress

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._n_done += len(data)
        self._on_progress(self._n_done / self._size_bytes)
