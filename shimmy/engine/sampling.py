"""From SamplingParams to the list of sampler stages of a job, in llama.cpp's default order.

Knows the ranges in which llama.cpp neither aborts nor overflows, and nothing of ctypes: `llama.py` builds the stages.
Order: common_sampler_init in llama.cpp's common/sampling.cpp.
"""

import math
from dataclasses import dataclass

from shimmy.errors import BadRequest
from shimmy.messages import SamplingParams

# Outside these bounds a float32 logit can overflow to infinity, and a softmax over infinities is not a number.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (-math.inf, 100.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 4.0),
    "top_k": (-math.inf, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-math.inf, 1000.0),
    "min_keep": (0, 1_000_000),
    "repeat_last_n": (-1, 1_000_000),
    "repeat_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (0.0, 100.0),
    "dry_allowed_length": (0, 1_000_000),
    "dry_penalty_last_n": (-1, 1_000_000),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat": (0, 2),
    "mirostat_tau": (0.01, 100.0),
    "mirostat_eta": (0.0001, 1.0),
}
_MAX_BIAS = 10_000.0
_MAX_BREAKERS = 64
_MAX_BREAKER_LENGTH = 64
# Dividing by less than this leaves the range of float32; the most likely token has all the probability long before.
_MIN_TEMPERATURE = 1e-4
# What is so much less likely than the best is never picked. llama.cpp's typical and mirostat 1 compute the logarithm of
# each candidate's probability, and what it is multiplied with is not a number where that is 0: those go before.
_NEGLIGIBLE = 1e-30
# Mirostat 1 estimates its exponent from this many candidates, as llama.cpp does.
_MIROSTAT_M = 100


_LOOKING_BACK = ("penalties", "dry")


@dataclass(frozen=True, slots=True)
class Stage:
    """One sampler of the chain: llama.cpp's name after `llama_sampler_init_`, and its scalar arguments in order.

    `n_history` is how many tokens of the prompt's end it must have seen before the first new one.
    """

    name: str
    arguments: tuple[float | int, ...] = ()
    n_history: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole chain of a job."""

    stages: tuple[Stage, ...]

    @property
    def looks_back(self) -> bool:
        """Whether it goes by the tokens that were picked before."""
        return any(stage.name in _LOOKING_BACK for stage in self.stages)


def check(params: SamplingParams, *, n_vocab: int, n_forbidden: int = 0) -> None:
    """Refuse what llama.cpp would abort on or compute nonsense from; BadRequest names the field.

    `n_forbidden` is how many tokens are ruled out already (end-of-generation tokens with `ignore_eos`).
    """
    for name, (low, high) in BOUNDS.items():
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise BadRequest(f"`{name}` must be {_range_text(low, high)}, got {value!r}", param=name)
    breakers = params.dry_sequence_breakers
    if len(breakers) > _MAX_BREAKERS or any(not 0 < len(text) <= _MAX_BREAKER_LENGTH for text in breakers):
        message = (
            f"`dry_sequence_breakers` takes up to {_MAX_BREAKERS} strings of 1 to {_MAX_BREAKER_LENGTH} characters"
        )
        raise BadRequest(message, param="dry_sequence_breakers")
    for token, bias in params.logit_bias:
        if not 0 <= token < n_vocab:
            message = f"`logit_bias` names token {token}, the vocabulary has 0 to {n_vocab - 1}"
            raise BadRequest(message, param="logit_bias")
        if math.isnan(bias) or (abs(bias) > _MAX_BIAS and bias != -math.inf):
            message = f"`logit_bias` of token {token} must be between -{_MAX_BIAS:g} and {_MAX_BIAS:g}, got {bias!r}"
            raise BadRequest(message, param="logit_bias")
    n_ruled_out = n_forbidden + len({token for token, bias in params.logit_bias if bias == -math.inf})
    if n_ruled_out >= n_vocab:
        raise BadRequest("`logit_bias` rules out every token", param="logit_bias")


def _range_text(low: float, high: float) -> str:
    return f"at most {high:g}" if low == -math.inf else f"between {low:g} and {high:g}"


def chain(params: SamplingParams, *, seed: int, n_ctx: int) -> Chain:
    """The stages of `params` (checked before) for a job whose random numbers come from the 32-bit `seed`.

    Stages that would do nothing are left out, so a plain greedy job costs one pass over the logits. `n_ctx` stands in
    for a window of -1.
    """
    temperature = params.temperature if params.temperature >= _MIN_TEMPERATURE else 0.0
    if params.mirostat and temperature:
        return Chain((Stage("temp", (temperature,)), *_mirostat(params, seed)))
    penalties = _penalties(params, n_ctx)
    return Chain((*penalties, *_filters(params, seed, temperature), *_choice(params, seed, temperature)))


def _filters(params: SamplingParams, seed: int, temperature: float) -> list[Stage]:
    """The stages that cut candidates away."""
    stages = []
    keep = params.min_keep
    may_cut_the_best = params.typical_p < 1 or params.xtc_probability > 0
    if not temperature and not may_cut_the_best:
        return []
    if params.top_n_sigma > 0:
        stages.append(Stage("top_n_sigma", (params.top_n_sigma,)))
    if params.top_k > 0:
        stages.append(Stage("top_k", (params.top_k,)))
    if params.typical_p < 1:
        stages += [_without_negligible(), Stage("typical", (params.typical_p, keep))]
    if params.top_p < 1:
        stages.append(Stage("top_p", (params.top_p, keep)))
    if params.min_p > 0:
        stages.append(Stage("min_p", (params.min_p, keep)))
    if params.xtc_probability > 0:
        stages.append(Stage("xtc", (params.xtc_probability, params.xtc_threshold, keep, seed)))
    return stages


def _choice(params: SamplingParams, seed: int, temperature: float) -> tuple[Stage, ...]:
    """The stages that pick one of the candidates left."""
    if not temperature:
        return (Stage("greedy"),)
    if params.dynatemp_range > 0:
        # The lowest temperature of the range may be none that logits can be divided by.
        low = max(_MIN_TEMPERATURE, temperature - params.dynatemp_range)
        high = temperature + params.dynatemp_range
        extended = ((high + low) / 2, (high - low) / 2, params.dynatemp_exponent)
        return (Stage("temp_ext", extended), Stage("dist", (seed,)))
    if temperature != 1:
        return (Stage("temp", (temperature,)), Stage("dist", (seed,)))
    return (Stage("dist", (seed,)),)


def _without_negligible() -> Stage:
    return Stage("min_p", (_NEGLIGIBLE, 1))


def _mirostat(params: SamplingParams, seed: int) -> tuple[Stage, ...]:
    if params.mirostat == 1:
        arguments = (seed, params.mirostat_tau, params.mirostat_eta, _MIROSTAT_M)
        return (_without_negligible(), Stage("mirostat", arguments))
    return (Stage("mirostat_v2", (seed, params.mirostat_tau, params.mirostat_eta)),)


def _penalties(params: SamplingParams, n_ctx: int) -> tuple[Stage, ...]:
    """The stages that look back at earlier tokens.

    `repeat_penalty` is llama.cpp's: the last tokens count, those of the prompt too. The penalties of OpenAI's API count
    all tokens of the reply, and none of the prompt.
    """
    stages: list[Stage] = []
    window = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
    if window and params.repeat_penalty != 1:
        stages.append(Stage("penalties", (window, params.repeat_penalty, 0.0, 0.0), window))
    if params.frequency_penalty or params.presence_penalty:
        amounts = (params.frequency_penalty, params.presence_penalty)
        stages.append(Stage("penalties", (n_ctx, 1.0, *amounts)))
    window = n_ctx if params.dry_penalty_last_n < 0 else min(params.dry_penalty_last_n, n_ctx)
    if window and params.dry_multiplier > 0 and params.dry_base >= 1:
        amounts_dry = (params.dry_multiplier, params.dry_base, params.dry_allowed_length)
        stages.append(Stage("dry", (*amounts_dry, window), window))
    return tuple(stages)
