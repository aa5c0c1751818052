"""The real llama.cpp with tiny models whose layers attend to tokens that they select by keys in a second cache.

What is selected is told as numbers of cells, so each token has to be in the same cell of both caches, whatever was
shared, dropped, saved, put back and moved before. All is computed in F32: in another order it is nearly the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert import convert as conversion
from shimmy.formats.convert.convert import ConversionPlan
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.writer import GgufType
from shimmy.wire.worker_options import cell_bytes
from tests.golden.weights import checkpoint, golden, tensor, write_folder, write_json, write_safetensors

N_CTX, N_BATCH, N_SEQUENCES = 1024, 64, 4
# deepseek32 has other positions in contexts beyond 128 tokens, and so a pool of one size.
FAMILIES = ["deepseek32", "glm-dsa"]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def written(family: str, folder: Path) -> Path:
    source = write_folder(family, folder / family, "5")
    path = source.with_suffix(".gguf")
    conversion.convert(source, path, lambda _: None)
    return path


def opened(path: Path, cpu: CpuBackend, *, kv_type: str = "f32") -> LlamaModel:
    model = LlamaModel(path, cpu)
    model.open_context(
        n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=N_SEQUENCES, n_threads=1, kv_type=kv_type
    )
    return model


@dataclass(slots=True)
class Pool:
    """A pool in which anything happens: which tokens each sequence has, and what was saved."""

    model: LlamaModel
    random: Random
    resident: list[list[int]] = field(default_factory=lambda: [[] for _ in range(N_SEQUENCES)])
    saved: list[tuple[list[int], memoryview]] = field(default_factory=list)

    def extend(self) -> dict[int, list[float]]:
        """Decode some rows of several sequences at once; returns the logits after the last one of each."""
        backend = self.model.backend
        backend.batch.clear()
        rows = {}
        for sequence in self.random.sample(range(N_SEQUENCES), self.random.randint(1, N_SEQUENCES)):
            tokens = [self.random.randrange(300) for _ in range(self.random.choice((1, 1, 3, 16)))]
            rows[sequence] = backend.batch.add(tokens, len(self.resident[sequence]), sequence, n_outputs=1)
            self.resident[sequence] += tokens
        assert backend.decode() == 0
        return {sequence: logits(self.model, row) for sequence, row in rows.items()}

    def drop(self) -> None:
        """As a draft that was wrong, or a turn that a conversation goes on without."""
        sequence = self.random.randrange(N_SEQUENCES)
        n_kept = max(0, len(self.resident[sequence]) - self.random.choice((1, 5, 30, 500)))
        assert self.model.backend.forget(sequence, n_kept)
        del self.resident[sequence][n_kept:]

    def share(self) -> None:
        source, target = self.random.sample(range(N_SEQUENCES), 2)
        n_shared = self.random.randint(0, len(self.resident[source]))
        self.model.backend.forget(target, 0)
        assert self.model.backend.share(source, target, n_shared)
        self.resident[target] = self.resident[source][:n_shared]

    def save(self) -> None:
        sequence = self.random.randrange(N_SEQUENCES)
        if tokens := self.resident[sequence]:
            state = self.model.backend.save_sequence(sequence, len(tokens))
            assert state is not None
            self.saved.append((list(tokens), memoryview(bytearray().join(state))))

    def put_back(self) -> None:
        if self.saved:
            tokens, state = self.random.choice(self.saved)
            sequence = self.random.randrange(N_SEQUENCES)
            self.model.backend.forget(sequence, 0)
            assert self.model.backend.load_sequence(sequence, len(tokens), state)
            self.resident[sequence] = list(tokens)

    def move(self) -> None:
        n_cells = self.random.choice((N_CTX // 2, N_CTX))
        self.model.backend.resize(n_cells, N_SEQUENCES)


def logits(model: LlamaModel, row: int) -> list[float]:
    return list(llama.llama_get_logits_ith(model.backend._context, row)[: model.vocab.n_vocab])


def computed(model: LlamaModel, tokens: list[int]) -> list[float]:
    """The logits after `tokens`, computed anew."""
    model.backend.wipe()
    row = -1
    for first in range(0, len(tokens), N_BATCH):
        model.backend.batch.clear()
        row = model.backend.batch.add(tokens[first : first + N_BATCH], first, 0, n_outputs=1)
        assert model.backend.decode() == 0
    return logits(model, row)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2))])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_caches_have_each_token_in_the_same_cell(family: str, seed: int, tmp_path: Path, cpu: CpuBackend) -> None:
    path = written(family, tmp_path)
    pool, fresh = Pool(opened(path, cpu), Random(seed)), opened(path, cpu)
    n_selected = golden(family)["configs"]["5"]["index_topk"]
    others = [pool.drop, pool.share, pool.save, pool.put_back, *([pool.move] if family == "glm-dsa" else [])]
    n_compared, n_apart = 0, 0
    for _ in range(80):
        for _ in range(pool.random.randint(0, 2)):
            pool.random.choice(others)()
        if sum(map(len, pool.resident)) > N_CTX // 2 - N_BATCH:
            pool.model.backend.wipe()
            pool.resident = [[] for _ in range(N_SEQUENCES)]
        for sequence, found in pool.extend().items():
            if len(pool.resident[sequence]) > 2 * n_selected:
                wanted = computed(fresh, pool.resident[sequence])
                n_compared += 1
                n_apart += found != pytest.approx(wanted, abs=1e-3)
    assert n_compared > 25
    # A score that is as good as another one may be the worse of the two in another order of sums.
    assert n_apart <= 1


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek3", "mistral4"])
def test_a_cell_takes_what_is_reckoned_with(family: str, tmp_path: Path, cpu: CpuBackend) -> None:
    path = written(family, tmp_path)
    model = opened(path, cpu, kv_type="f16")
    n_bytes = []
    for n_tokens in (64, 128):
        computed(model, [5] * n_tokens)
        n_bytes.append(model.backend.sequence_bytes(0))
    n_caches = 2 if family in FAMILIES else 1
    n_named = 3 * 4 * n_caches  # position and sequence of a cell
    assert (n_bytes[1] - n_bytes[0]) / 64 == cell_bytes(reader.read_header(path).n_kv) + n_named


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_drafts_makes_no_difference(
    family: str, tmp_path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GGUF files of these models have it behind the others; it gets no cell."""
    plain = written(family, tmp_path / "plain")
    n_layers = golden(family)["configs"]["5"]["num_hidden_layers"]
    monkeypatch.setattr(conversion, "plan", partial(with_draft, conversion.plan, f"blk.{n_layers}."))
    drafting = written(family, tmp_path / "drafting")
    headers = [reader.validate(path) for path in (plain, drafting)]
    assert [header.n_layers - n_layers for header in headers] == [0, 1]
    assert headers[0].n_kv == headers[1].n_kv
    tokens = [7 * place % 300 for place in range(100)]
    assert computed(opened(plain, cpu), tokens) == computed(opened(drafting, cpu), tokens)


def with_draft(plan: Callable[[Path], ConversionPlan], block: str, folder: Path) -> ConversionPlan:
    """With one more layer, of the tensors of the last one."""
    found = plan(folder)
    recipe, count = found.recipe, f"{found.architecture}.block_count"
    outputs = {output.info.name: output for output in recipe.outputs}
    last = f"blk.{int(block.split('.')[1]) - 1}."
    more = {name.replace(last, block): output for name, output in outputs.items() if name.startswith(last)}
    norm, square = outputs["blk.0.attn_norm.weight"], outputs["blk.0.indexer.attn_k.weight"]
    more |= {f"{block}nextn.{name}.weight": norm for name in ("enorm", "hnorm")}
    both = replace(square, info=replace(square.info, shape=(128, 64)), pieces=square.pieces * 2)
    more[f"{block}nextn.eh_proj.weight"] = both
    metadata = [(key, code, value + 1 if key == count else value) for key, code, value in recipe.metadata]
    metadata.append((f"{found.architecture}.nextn_predict_layers", GgufType.UINT32, 1))
    added = [replace(output, info=replace(output.info, name=name)) for name, output in more.items()]
    return replace(found, recipe=replace(recipe, metadata=metadata, outputs=(*recipe.outputs, *added)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_cache_suits_them(family: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """With vectors of whole blocks, as published models have them."""
    folder = write_folder(family, tmp_path / family, "5")
    config, tensors = checkpoint(family, "5")
    wider = {"kv_a_proj_with_mqa": (32 + 32, 64), "q_b_proj": (4 * (16 + 32), 24)}
    for name in tensors:
        if shape := wider.get(name.split(".")[-2]):
            tensors[name] = tensor("wide", config, name, shape, "F32")
    write_safetensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config | {"qk_rope_head_dim": 32})
    path = folder.with_suffix(".gguf")
    conversion.convert(folder, path, lambda _: None)
    few, many = ([7 * place % 300 for place in range(n_tokens)] for n_tokens in (30, 200))
    for tokens, distance in ((few, 0.2), (many, 1.0)):  # of many, some are selected in the place of others
        exact, rounded = (computed(opened(path, cpu, kv_type=kv_type), tokens) for kv_type in ("f16", "q8_0"))
        assert max(exact) - min(exact) > 2
        assert rounded == pytest.approx(exact, abs=distance)
