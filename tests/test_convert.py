"""From a folder in SafeTensors to a GGUF that the engine runs: the same tensors and text, and nothing half done."""

import struct
from pathlib import Path

import pytest

from shimmy.engine import sampling, variants
from shimmy.engine.llama import LIBRARY_FOLDER, CpuBackend, LlamaModel
from shimmy.formats import convert, gguf
from shimmy.messages import SamplingParams
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
    tokens = model.tokenize(prompt, add_special=True, parse_special=True)
    chain = sampling.chain(GREEDY, seed=1, n_ctx=model.n_ctx)
    sampler = model.new_sampler(chain, (), ())
    position, said = 0, []
    for _ in range(n_tokens):
        model.batch.clear()
        row = model.batch.add(tokens, position, 0, n_outputs=1)
        assert model.decode() == 0
        position += len(tokens)
        tokens = [sampler.sample(row)]
        said += tokens
    return model.detokenize(said)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_folder_becomes_the_gguf_of_the_same_model(n_shards: int, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", seed=5, n_shards=n_shards)
    shares: list[float] = []
    made = convert.convert(folder, tmp_path / "out.gguf", shares.append)
    expected = {tensor.name: (tensor.shape, tensor.code, tensor.data) for tensor in model_tensors(5)}
    assert tensor_bytes(tmp_path / "out.gguf") == expected
    header = gguf.validate(tmp_path / "out.gguf")
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
