"""From SamplingParams to the list of sampler stages of a job, in llama.cpp's default order.

Knows nothing of ctypes: `sampler.py` builds the stages. Order: common_sampler_init in llama.cpp's common/sampling.cpp.
"""

from dataclasses import dataclass

from shimmy.messages.request import SamplingParams

# Dividing by less than this leaves the range of float32; the most likely token has all the probability long before.
_MIN_TEMPERATURE = 1e-4
# What is so much less likely than the best is never picked. llama.cpp's typical and mirostat 1 compute the logarithm of
# each candidate's probability, and what it is multiplied with is not a number where that is 0: those go before.
_NEGLIGIBLE = 1e-30
# Mirostat 1 estimates its exponent from this many candidates, as llama.cpp does.
_MIROSTAT_M = 100
_LOOKING_BACK = ("penalties", "dry")


@dataclass(frozen=True, slots=True)
class SamplerStage:
    """One sampler of the chain: llama.cpp's name after `llama_sampler_init_`, and its scalar arguments in order.

    `n_history` is how many tokens of the prompt's end it must have seen before the first new one.
    """

    name: str
    arguments: tuple[float | int, ...] = ()
    n_history: int = 0


@dataclass(frozen=True, slots=True)
class SamplerChain:
    """The whole chain of a job."""

    stages: tuple[SamplerStage, ...]

    @property
    def looks_back(self) -> bool:
        """Whether it goes by the tokens that were picked before."""
        return any(stage.name in _LOOKING_BACK for stage in self.stages)


def chain(params: SamplingParams, *, seed: int, n_ctx: int) -> SamplerChain:
    """The stages of `params` (checked before) for a job whose random numbers come from the 32-bit `seed`.

    Stages that would do nothing are left out, so a plain greedy job costs one pass over the logits. `n_ctx` stands in
    for a window of -1.
    """
    temperature = params.temperature if params.temperature >= _MIN_TEMPERATURE else 0.0
    if params.mirostat and temperature:
        return SamplerChain((SamplerStage("temp", (temperature,)), *_mirostat(params, seed)))
    penalties = _penalties(params, n_ctx)
    return SamplerChain((*penalties, *_filters(params, seed, temperature), *_choice(params, seed, temperature)))


def _filters(params: SamplingParams, seed: int, temperature: float) -> list[SamplerStage]:
    """The stages that cut candidates away."""
    stages = []
    keep = params.min_keep
    may_cut_the_best = params.typical_p < 1 or params.xtc_probability > 0
    if not temperature and not may_cut_the_best:
        return []
    if params.top_n_sigma > 0:
        stages.append(SamplerStage("top_n_sigma", (params.top_n_sigma,)))
    if params.top_k > 0:
        stages.append(SamplerStage("top_k", (params.top_k,)))
    if params.typical_p < 1:
        stages += [_without_negligible(), SamplerStage("typical", (params.typical_p, keep))]
    if params.top_p < 1:
        stages.append(SamplerStage("top_p", (params.top_p, keep)))
    if params.min_p > 0:
        stages.append(SamplerStage("min_p", (params.min_p, keep)))
    if params.xtc_probability > 0:
        stages.append(SamplerStage("xtc", (params.xtc_probability, params.xtc_threshold, keep, seed)))
    return stages


def _choice(params: SamplingParams, seed: int, temperature: float) -> tuple[SamplerStage, ...]:
    """The stages that pick one of the candidates left."""
    if not temperature:
        return (SamplerStage("greedy"),)
    if params.dynatemp_range > 0:
        # The lowest temperature of the range may be none that logits can be divided by.
        low = max(_MIN_TEMPERATURE, temperature - params.dynatemp_range)
        high = temperature + params.dynatemp_range
        extended = ((high + low) / 2, (high - low) / 2, params.dynatemp_exponent)
        return (SamplerStage("temp_ext", extended), SamplerStage("dist", (seed,)))
    if temperature != 1:
        return (SamplerStage("temp", (temperature,)), SamplerStage("dist", (seed,)))
    return (SamplerStage("dist", (seed,)),)


def _without_negligible() -> SamplerStage:
    return SamplerStage("min_p", (_NEGLIGIBLE, 1))


def _mirostat(params: SamplingParams, seed: int) -> tuple[SamplerStage, ...]:
    if params.mirostat == 1:
        arguments = (seed, params.mirostat_tau, params.mirostat_eta, _MIROSTAT_M)
        return (_without_negligible(), SamplerStage("mirostat", arguments))
    return (SamplerStage("mirostat_v2", (seed, params.mirostat_tau, params.mirostat_eta)),)


def _penalties(params: SamplingParams, n_ctx: int) -> tuple[SamplerStage, ...]:
    """The stages that look back at earlier tokens.

    `repeat_penalty` is llama.cpp's: the last tokens count, those of the prompt too. The penalties of OpenAI's API count
    all tokens of the reply, and none of the prompt.
    """
    stages: list[SamplerStage] = []
    window = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
    if window and params.repeat_penalty != 1:
        stages.append(SamplerStage("penalties", (window, params.repeat_penalty, 0.0, 0.0), window))
    if params.frequency_penalty or params.presence_penalty:
        amounts = (params.frequency_penalty, params.presence_penalty)
        stages.append(SamplerStage("penalties", (n_ctx, 1.0, *amounts)))
    window = n_ctx if params.dry_penalty_last_n < 0 else min(params.dry_penalty_last_n, n_ctx)
    if window and params.dry_multiplier > 0 and params.dry_base >= 1:
        amounts_dry = (params.dry_multiplier, params.dry_base, params.dry_allowed_length)
        stages.append(SamplerStage("dry", (*amounts_dry, window), window))
    return tuple(stages)
