"""The values of SamplingParams with which llama.cpp neither aborts nor overflows.

Knows no engine: in the worker, `engine.llama.sampler_chain` makes sampler stages of the parameters.
"""

import math

from shimmy.errors import BadRequest
from shimmy.messages.request import SamplingParams

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
