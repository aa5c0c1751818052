import math
from dataclasses import replace

import pytest

from shimmy.engine.llama.sampler_chain import SamplerStage, chain
from shimmy.errors import BadRequest
from shimmy.messages.request import SamplingParams
from shimmy.messages.sampling_limits import check

GREEDY = SamplingParams(temperature=0)


def names(params: SamplingParams) -> list[str]:
    return [stage.name for stage in chain(params, seed=1, n_ctx=100).stages]


def test_the_default_chain_is_llama_cpps_without_what_is_off() -> None:
    assert names(SamplingParams()) == ["top_k", "top_p", "min_p", "temp", "dist"]


def test_everything_on_keeps_llama_cpps_order() -> None:
    params = SamplingParams(
        repeat_penalty=1.1, dry_multiplier=0.8, top_n_sigma=1.0, typical_p=0.9, xtc_probability=0.5, dynatemp_range=0.3
    )
    assert names(params) == [
        *("penalties", "dry", "top_n_sigma", "top_k", "min_p", "typical", "top_p", "min_p", "xtc", "temp_ext", "dist"),
    ]  # fmt: skip


def test_greedy_skips_what_cannot_change_the_most_likely_token() -> None:
    assert names(GREEDY) == ["greedy"]
    assert names(replace(GREEDY, presence_penalty=1.0)) == ["penalties", "greedy"]
    assert names(replace(GREEDY, typical_p=0.5))[-3:] == ["top_p", "min_p", "greedy"]


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    assert names(SamplingParams(temperature=1e-30)) == ["greedy"]


@pytest.mark.parametrize(("version", "expected"), [(1, ["temp", "min_p", "mirostat"]), (2, ["temp", "mirostat_v2"])])
def test_mirostat_replaces_the_filters(version: int, expected: list[str]) -> None:
    assert names(SamplingParams(mirostat=version)) == expected


def test_a_window_of_minus_one_is_the_context() -> None:
    result = chain(SamplingParams(repeat_last_n=-1, repeat_penalty=1.5), seed=1, n_ctx=100)
    assert result.stages[0] == SamplerStage("penalties", (100, 1.5, 0.0, 0.0), n_history=100)


def test_openais_penalties_count_the_whole_reply_and_none_of_the_prompt() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=-0.5, repeat_last_n=0, repeat_penalty=2)
    assert chain(params, seed=1, n_ctx=100).stages[0] == SamplerStage("penalties", (100, 1.0, 0.5, -0.5), n_history=0)
    both = chain(replace(params, repeat_last_n=8), seed=1, n_ctx=100)
    assert both.stages[:2] == (
        SamplerStage("penalties", (8, 2, 0.0, 0.0), n_history=8),
        SamplerStage("penalties", (100, 1.0, 0.5, -0.5), n_history=0),
    )
    assert both.looks_back


def test_a_dynamic_temperature_has_a_lowest_that_can_be_divided_by() -> None:
    *_, stage, _ = chain(SamplingParams(temperature=0.5, dynatemp_range=0.5), seed=1, n_ctx=100).stages
    temperature, spread, _ = stage.arguments
    assert temperature - spread == pytest.approx(1e-4)
    assert temperature + spread == pytest.approx(1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"repeat_penalty": 0.0}, {"repeat_penalty": math.inf}, {"repeat_penalty": math.nan}, {"top_p": 1.5},
        {"temperature": 1e9}, {"frequency_penalty": math.inf}, {"mirostat": 3}, {"mirostat_tau": 0.0},
        {"dry_sequence_breakers": ("",)}, {"dry_sequence_breakers": ("x",) * 65},
        {"logit_bias": ((-1, 1.0),)}, {"logit_bias": ((10, 1.0),)}, {"logit_bias": ((1, math.nan),)},
        {"logit_bias": ((1, math.inf),)}, {"logit_bias": ((1, 1e30),)},
        {"logit_bias": tuple((token, -math.inf) for token in range(10))},
    ],
)  # fmt: skip
def test_what_would_abort_or_overflow_is_refused_with_the_field(change: dict[str, object]) -> None:
    with pytest.raises(BadRequest) as caught:
        check(replace(SamplingParams(), **change), n_vocab=10)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(change))
    assert f"`{caught.value.param}`" in caught.value.message


def test_forbidding_the_rest_beside_the_end_tokens_is_refused() -> None:
    params = SamplingParams(logit_bias=tuple((token, -math.inf) for token in range(9)))
    check(params, n_vocab=10)
    with pytest.raises(BadRequest, match="rules out every token"):
        check(params, n_vocab=10, n_forbidden=1)


def test_defaults_and_usual_values_pass() -> None:
    check(SamplingParams(), n_vocab=10)
    check(SamplingParams(temperature=-1, top_k=-1, top_n_sigma=-1, logit_bias=((3, -math.inf),)), n_vocab=10)
