"""What workers are told of a draft model, and the memory it counts as."""

from dataclasses import replace
from pathlib import Path

import pytest

from shimmy import config
from shimmy.formats.gguf import reader
from shimmy.option_kinds import ConfigError
from shimmy.pool import memory_estimate
from shimmy.pool.launch_plan import LaunchPlanner
from shimmy.wire.worker_options import DRAFT_BATCH, KV_TYPES, Offload
from tests.fakes import model
from tests.tiny_models import write_tiny_model

TINY = model()


def launch(path: Path, **flags: str) -> LaunchPlanner:
    return LaunchPlanner(config.load({"draft_model": str(path), **flags}, {}))


def test_a_worker_is_told_of_the_draft_model_unless_that_is_its_own_model_or_nothing_is_guessed(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    assert launch(path).options(TINY).draft_model == str(path)
    assert launch(path).options(replace(TINY, path=path)).draft_model is None
    assert launch(path, speculation="off").options(TINY).draft_model is None
    assert LaunchPlanner(config.load({}, {})).options(TINY).draft_model is None


def test_a_worker_is_told_the_options_of_the_same_name_as_they_are() -> None:
    flags = {
        "parallel": "3", "threads": "2", "cpu_variant": "haswell", "chat_template": "{{ 1 }}", "speculation": "off",
        "embeddings": "on", "pooling": "last", "log_level": "error", "log_format": "json", "weights": "mapped",
        "safetensors_type": "q8_0", "worker_timeout": "90", "load_timeout": "-1", "prompt_cache": "2G",
        "kv_type": "q8_0",
    }  # fmt: skip
    configured = config.load(flags, {})
    options = LaunchPlanner(configured).options(TINY)
    rows = [option for option in config.OPTIONS if option.name in flags]
    assert len(rows) == len(flags)
    for option in rows:
        name = option.field or option.name
        assert getattr(options, name) == getattr(configured, name) != option.default


def test_a_quantised_cache_takes_less_memory_and_an_exact_one_more() -> None:
    usual, half, quarter, double = (of_kv_type(kv_type) for kv_type in KV_TYPES)
    assert usual.kv == TINY.n_kv * 4096 * 2
    assert (half.kv, quarter.kv) == (usual.kv * 8.5 / 16, usual.kv * 4.5 / 16)
    assert double.kv == 2 * usual.kv


def test_without_flash_attention_each_head_has_scores() -> None:
    usual, _, _, exact = (of_kv_type(kv_type).compute for kv_type in KV_TYPES)
    moving = TINY.n_kv * 4096 * 2 / 4  # the larger cells of a pool that grows
    assert exact - usual == 256 * 4096 * (2 + 4 + 4 * TINY.n_heads) + moving


def of_kv_type(kv_type: str) -> memory_estimate.MemoryEstimate:
    planner = LaunchPlanner(config.load({"kv_type": kv_type, "ctx_size": "4096"}, {}))
    return planner.estimate(TINY, planner.options(TINY))


@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_memory_of_the_draft_model_counts_where_it_may_fit(n_shards: int, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, n_ctx_train=4096, n_shards=n_shards)
    header = reader.read_header(path)
    wide = replace(TINY, n_vocab=header.n_vocab, n_ctx_train=4096)
    with_draft, plain = launch(path), LaunchPlanner(config.load({}, {}))

    def more(**changes: object) -> memory_estimate.MemoryEstimate:
        of = replace(wide, **changes)  # type: ignore[arg-type]
        need, least = (each.estimate(of, each.options(of)) for each in (with_draft, plain))
        return memory_estimate.MemoryEstimate(
            need.weights - least.weights, need.kv - least.kv, need.compute - least.compute
        )

    assert more().weights == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert more().kv == header.n_kv * 2048 * 2
    assert more().compute > header.n_vocab * 4 + DRAFT_BATCH * 2048 * 2
    assert more(n_ctx_train=1024).kv == header.n_kv * 1024 * 2
    assert more(n_vocab=header.n_vocab + 128).total > 0
    assert more(n_vocab=header.n_vocab + 129).total == 0
    assert more(is_embedding=True, pooling="mean").total == 0


LONG = replace(TINY, n_ctx_train=131_072, n_kv=10_000)


def need(flags: dict[str, str], n_ctx: int) -> int:
    """Bytes of a pool of which all is set aside."""
    terms = LaunchPlanner(config.load(flags, {}))
    return terms.estimate(LONG, replace(terms.options(LONG, n_ctx), n_ctx_booked=None)).total


@pytest.mark.parametrize(
    ("n_fits", "n_ctx", "n_booked"),
    [
        (200_000, 131_072, 8192),
        (131_072, 131_072, 8192),
        (131_071, 65_536, 8192),
        (10_000, 8192, 8192),
        (8192, 8192, 8192),
        (8000, 4096, 4096),
        (100, 2048, 2048),
    ],
)
def test_a_pool_may_grow_to_the_training_length_as_far_as_memory_allows(n_fits: int, n_ctx: int, n_booked: int) -> None:
    terms = LaunchPlanner(config.load({}, {}))
    options = terms.fitting(LONG, need({}, n_fits), Offload())
    assert (options.n_ctx, options.n_booked) == (n_ctx, n_booked)
    assert terms.estimate(LONG, options).kv == 10_000 * 2 * n_booked


def test_under_a_limit_all_of_a_pool_is_set_aside_and_a_long_one_is_no_more_than_half_of_it() -> None:
    flags = {"max_memory": "100GB"}
    terms = LaunchPlanner(config.load(flags, {}))
    for n_fits, n_ctx in ((262_144, 131_072), (131_072, 65_536), (20_000, 8192), (8192, 8192), (5000, 4096)):
        options = terms.fitting(LONG, need(flags, n_fits) + (need(flags, n_fits) if n_ctx > 8192 else 0), Offload())
        assert options.n_ctx == options.n_booked
        assert options.n_ctx >= n_ctx
        assert terms.estimate(LONG, options).kv == 10_000 * 2 * options.n_ctx


def test_a_length_that_was_asked_for_is_set_aside_whole() -> None:
    for n_ctx in (100, 50_000, 1_000_000):
        options = LaunchPlanner(config.load({"ctx_size": str(n_ctx)}, {})).fitting(LONG, 0, Offload())
        assert (options.n_ctx, options.n_booked) == (n_ctx, n_ctx)


def test_a_draft_model_that_is_not_there_or_no_model_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the draft model `.*nothing.gguf` cannot be read: No such file"):
        launch(tmp_path / "nothing.gguf")
    with pytest.raises(ConfigError, match=r"^the draft model `.*` cannot be used: it is not a regular file"):
        launch(tmp_path)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(bytes(range(100)))
    with pytest.raises(ConfigError, match=r"cannot be used: it does not begin with `GGUF`"):
        launch(junk)


def test_a_context_that_no_person_asked_for_takes_no_room_from_layers_on_devices() -> None:
    long = replace(TINY, n_ctx_train=131072, n_kv=4096)
    kv = [LaunchPlanner(config.load(flags, {})).whole(long).kv for flags in ({}, {"max_memory": "16G"})]
    assert kv[0] == kv[1] < LaunchPlanner(config.load({"ctx_size": "131072"}, {})).whole(long).kv
