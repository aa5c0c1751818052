"""From a folder in SafeTensors to a GGUF that the engine runs: the same tensors and text, and nothing half done."""

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert import convert
from shimmy.formats.convert.convert import cached
from shimmy.formats.convert.converted import cache_name
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import reader
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.messages.request import SamplingParams
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import model_tensors, write_tiny_model

GREEDY = SamplingParams(temperature=0)


def ignore(share: float) -> None:
    """Progress that nobody looks at."""
    assert 0 <= share <= 1


def tensor_bytes(path: Path) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    """Shape, type and data of all tensors of a GGUF, read without the reader that the product has for it."""
    content = path.read_bytes()
    n_tensors, n_keys = struct.unpack_from("<QQ", content, 8)
    at = 24

    def text() -> str:
        nonlocal at
        (n_bytes,) = struct.unpack_from("<Q", content, at)
        at += 8 + n_bytes
        return content[at - n_bytes : at].decode()

    def skip(code: int) -> None:
        nonlocal at
        if code == 8:
            text()
        elif code == 9:
            item_code, n_items = struct.unpack_from("<IQ", content, at)
            at += 12
            for _ in range(n_items):
                skip(item_code)
        else:
            at += (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)[code]

    for _ in range(n_keys):
        text()
        (code,) = struct.unpack_from("<I", content, at)
        at += 4
        skip(code)
    infos = []
    for _ in range(n_tensors):
        name = text()
        (n_dimensions,) = struct.unpack_from("<I", content, at)
        *dimensions, code, offset = struct.unpack_from(f"<{n_dimensions}QIQ", content, at + 4)
        at += 4 + 8 * n_dimensions + 12
        infos.append((name, tuple(dimensions), code, offset))
    start = -at % 32 + at
    found = {}
    for name, shape, code, offset in infos:
        n_bytes = {0: 4, 1: 2, 30: 2}[code]
        for dimension in shape:
            n_bytes *= dimension
        found[name] = (shape, code, content[start + offset : start + offset + n_bytes])
    return found


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def greedy_text(path: Path, cpu: CpuBackend, prompt: str, n_tokens: int = 24) -> str:
    model = LlamaModel(path, cpu)
    model.open_context(n_ctx=256, n_batch=64, n_sequences=1, n_outputs=8, n_threads=1)
    tokens = model.vocab.tokenize(prompt, add_special=True, parse_special=True)
    chain = sampler_chain.chain(GREEDY, seed=1, n_ctx=model.n_ctx)
    sampler = model.new_sampler(chain, (), ())
    position, said = 0, []
    for _ in range(n_tokens):
        model.backend.batch.clear()
        row = model.backend.batch.add(tokens, position, 0, n_outputs=1)
        assert model.backend.decode() == 0
        position += len(tokens)
        tokens = [sampler.sample(row)]
        said += tokens
    return model.vocab.detokenize(said)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_folder_becomes_the_gguf_of_the_same_model(n_shards: int, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", seed=5, n_shards=n_shards)
    shares: list[float] = []
    made = convert.convert(folder, tmp_path / "out.gguf", shares.append)
    expected = {tensor.name: (tensor.shape, tensor.code, tensor.data) for tensor in model_tensors(5)}
    assert tensor_bytes(tmp_path / "out.gguf") == expected
    header = reader.validate(tmp_path / "out.gguf")
    assert (header.architecture, header.name, header.quantization) == ("llama", "tiny", "F32")
    assert (made.architecture, made.name, made.quantization) == ("llama", "tiny", "F32")
    assert header.n_params == made.n_params == sum(len(tensor.data) for tensor in model_tensors(5)) // 4
    assert header.n_ctx_train == made.n_ctx_train == 512
    assert made.notices == ()
    assert made.size_bytes <= header.size_bytes
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "tiny"]


def test_the_engine_says_the_text_of_the_same_model(tmp_path: Path, cpu: CpuBackend) -> None:
    original = write_tiny_model(tmp_path, seed=7)
    convert.convert(write_tiny_llama(tmp_path / "folder", seed=7), tmp_path / "made.gguf", ignore)
    for prompt in ("hello world", "the user and the system"):
        assert greedy_text(tmp_path / "made.gguf", cpu, prompt) == greedy_text(original, cpu, prompt)


# -- the cache -------------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from shimmy.formats.convert.convert import cached
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.formats.format_errors import Unconvertible
#X cached
def report(share):
    print(share, flush=True)
    time.sleep(float(sys.argv[3]))
print(cached(Path(sys.argv[1]), Path(sys.argv[2]), report).path, flush=True)
"""


def child(folder: Path, cache: Path, pause_s: float = 0.0) -> subprocess.Popen[str]:
    """A process that converts, and pauses after each chunk so that others come in between."""
    command = [sys.executable, "-c", CHILD, str(folder), str(cache), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_converted_is_found_again(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "new" / "cache"
    first = cached(folder, cache, ignore)
    before = first.path.stat()
    shares: list[float] = []
    assert cached(folder, cache, shares.append) == first
    assert (first.path.stat().st_mtime_ns, shares) == (before.st_mtime_ns, [1.0])
    assert first.descriptor is None


def test_a_folder_that_changed_is_converted_anew_and_the_old_file_goes(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    other = cached(write_tiny_llama(tmp_path / "other"), cache, ignore).path
    old = cached(folder, cache, ignore).path
    write_tiny_llama(folder, seed=1)
    new = cached(folder, cache, ignore).path
    assert new != old
    assert names_in(cache) == sorted((new.name, other.name))
    assert tensor_bytes(new)["output.weight"][2] == model_tensors(1)[2].data


def test_all_that_a_gguf_depends_on_is_in_its_name(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    names = {cache_name(folder), cache_name(folder, "q8_0")}
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json", "merges.txt", "hy.tiktoken"):
        (folder / name).write_text("{}")
        names.add(cache_name(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    names.add(cache_name(folder))
    (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    names.add(cache_name(folder))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    names.add(cache_name(folder))
    assert len(names) == 10
    (folder / "README.md").write_text("hello")
    assert cache_name(folder) in names


def test_a_link_to_nothing_counts_once_there_is_something(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    before = cache_name(folder)
    (folder / "chat_template.jinja").symlink_to(tmp_path / "template")
    assert cache_name(folder) == before
    assert cached(folder, tmp_path / "cache", ignore).path.exists()
    (tmp_path / "template").write_text("T")
    assert cache_name(folder) != before


def test_a_file_that_lost_its_end_is_made_again(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    path = cached(folder, tmp_path, ignore).path
    size = path.stat().st_size
    os.truncate(path, size - 100)
    assert cached(folder, tmp_path, ignore).path.stat().st_size == size


def test_another_type_is_made_of_the_lossless_file(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    seen: list[Path] = []

    def finish(lossless: Path, target: Path) -> None:
        assert reader.validate(lossless).quantization == "F32"
        seen.extend((lossless, target))
        target.write_bytes(lossless.read_bytes())

    made = cached(folder, cache, ignore, target_type="q8_0", finish=finish)
    assert names_in(cache) == [made.path.name]
    assert len(seen) == 2
    assert cached(folder, cache, ignore, target_type="q8_0", finish=finish) == made
    assert len(seen) == 2


def test_two_processes_make_one_file(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    first = child(folder, cache, pause_s=0.02)
    assert first.stdout is not None
    first.stdout.readline()  # it is writing
    second = child(folder, cache)
    said = [process.communicate()[0].splitlines() for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert said[0][-1] == said[1][-1] == str(cache / names_in(cache)[0])
    assert len(names_in(cache)) == 1
    assert reader.validate(cache / names_in(cache)[0]).n_params > 0


def test_a_killed_conversion_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    process = child(folder, cache, pause_s=0.05)
    waiting = child(folder, cache)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = waiting.communicate()[0].splitlines()[-1]
    assert names_in(cache) == [Path(made).name]
    reader.validate(Path(made))
    # And with nobody waiting: what is left is longer than the file that is to be.
    Path(made).unlink()
    (cache / f"{Path(made).name}.part").write_bytes(b"x" * 5_000_000)
    assert cached(folder, cache, ignore).path == Path(made)
    assert reader.validate(Path(made)).size_bytes < 5_000_000
    assert names_in(cache) == [Path(made).name]


def test_what_killed_conversions_of_other_folders_have_left_goes_and_what_is_in_the_making_stays(
    tmp_path: Path,
) -> None:
    """A folder that was changed or removed meanwhile left a file as large as a model for ever."""
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    killed = child(write_tiny_llama(tmp_path / "gone"), cache, pause_s=0.05)
    going = child(write_tiny_llama(tmp_path / "other"), cache, pause_s=0.05)
    for process in (killed, going):
        assert process.stdout is not None
        process.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (left,) = (path for path in cache.glob("*.part") if path.name.startswith(cache_name(tmp_path / "gone")[:12]))
    lossless = left.with_name(f"{left.name}.lossless")
    lossless.write_bytes(b"x")
    (cache / "model.gguf.part").write_bytes(b"of somebody else")
    made = cached(folder, cache, ignore).path
    assert not left.exists()
    assert not lossless.exists()
    other = Path(going.communicate()[0].splitlines()[-1])
    assert going.returncode == 0
    reader.validate(other)
    assert names_in(cache) == sorted((made.name, other.name, "model.gguf.part"))


def test_who_stops_a_conversion_finds_nothing_half_done(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(folder, cache, stop)
    assert names_in(cache) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    pwrite = os.pwrite

    def with_room_for_little(descriptor: int, data: memoryview, place: int) -> int:
        if place > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:70_000], place)

    monkeypatch.setattr(os, "pwrite", with_room_for_little)
    with pytest.raises(Unconvertible, match="make room there"):
        cached(folder, cache, ignore)
    assert names_in(cache) == []


def test_a_disk_that_is_too_small_is_not_even_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000))
    shares: list[float] = []
    with pytest.raises(Unconvertible, match="make room there"):
        cached(folder, cache, shares.append)
    assert (names_in(cache), shares) == ([], [])


@pytest.mark.parametrize("has_finish", [False, True])
def test_where_nothing_can_be_written_memory_serves(has_finish: bool, tmp_path: Path, cpu: CpuBackend) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", seed=3)
    (tmp_path / "file").touch()
    finish = (lambda lossless, target: target.write_bytes(lossless.read_bytes())) if has_finish else None
    for cache in (None, tmp_path / "file" / "cache"):
        made = cached(folder, cache, ignore, target_type="f32" if has_finish else "", finish=finish)
        assert made.descriptor is not None
        assert reader.validate(made.path).n_params > 0
        original = write_tiny_model(tmp_path, seed=3)
        assert greedy_text(made.path, cpu, "hello") == greedy_text(original, cpu, "hello")
        os.close(made.descriptor)
    assert names_in(tmp_path) == ["file", "tiny", "tiny.gguf"]


def test_a_broken_folder_leaves_nothing(tmp_path: Path) -> None:
    folder, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    (folder / "tokenizer.model").unlink()
    with pytest.raises((Unconvertible, FileNotFoundError)):
        cached(folder, cache, ignore)
    assert names_in(cache) == []
    (folder / "config.json").write_text("[]")
    with pytest.raises(InvalidSafetensors, match=r"`config\.json` is not a JSON object"):
        cached(folder, cache, ignore)


def test_a_name_that_would_change_the_tokenizer_is_not_written_as_it_is(tmp_path: Path, cpu: CpuBackend) -> None:
    """llama.cpp fails to load a model with `phi-3` in its name and without Phi-3's tokens."""
    path = tmp_path / "made.gguf"
    convert.convert(write_tiny_llama(tmp_path / "My-Phi-3-llama"), path, ignore)
    assert reader.validate(path).name == "My-Phi 3-llama"
    LlamaModel(path, cpu)
