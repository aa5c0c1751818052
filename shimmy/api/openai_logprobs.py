"""Log-probabilities in OpenAI's two shapes: that of chat completions, and the older one of completions."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from shimmy.api.fields import Json
from shimmy.messages import Candidate, TokenLogprob

# What OpenAI writes for a token that is as good as impossible; JSON has no infinity.
LOWEST = -9999.0


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    return {
        "content": [
            _candidate(token.chosen) | {"top_logprobs": [_candidate(other) for other in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def _candidate(candidate: Candidate) -> Json:
    return {
        "token": candidate.data.decode("utf-8", "replace"),
        "bytes": list(candidate.data),
        "logprob": _number(candidate.logprob),
    }


class TextLogprobs:
    """The four arrays for the tokens of one text, which may be told in several parts."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def part(self, tokens: Sequence[TokenLogprob]) -> Json:
        """For the tokens that follow those told before; an offset is that of a token's first whole character."""
        offsets = []
        for token in tokens:
            offsets.append(self._n_characters)
            self._n_characters += len(self._decoder.decode(token.chosen.data))
        return {
            "tokens": [_token(token.chosen) for token in tokens],
            "token_logprobs": [None if _is_unknown(token) else _number(token.chosen.logprob) for token in tokens],
            "top_logprobs": [None if _is_unknown(token) else _by_token(token) for token in tokens],
            "text_offset": offsets,
        }


def _by_token(token: TokenLogprob) -> Json:
    """The candidates by their texts, the token itself among them; of two with one text the likelier one counts."""
    by_token: Json = {}
    for candidate in (*token.top, token.chosen):
        by_token.setdefault(_token(candidate), _number(candidate.logprob))
    return by_token


def _token(candidate: Candidate) -> str:
    """The text of a token; the bytes of one that is no text by itself, in OpenAI's form."""
    try:
        return candidate.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in candidate.data)


def _is_unknown(token: TokenLogprob) -> bool:
    """Whether nothing was predicted at its place, which is so for the first token of a prompt: it is nan then."""
    return token.chosen.logprob != token.chosen.logprob


def _number(logprob: float) -> float:
    return max(LOWEST, logprob)
