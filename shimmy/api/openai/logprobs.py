"""Log-probabilities in OpenAI's two shapes: that of chat completions, and the older one of completions."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from shimmy.api.logprobs import token_logprob
from shimmy.api.request_fields.field_kinds import Json
from shimmy.messages.event import LEAST_LOGPROB, Candidate, Echo, Piece, TokenLogprob

_LOOK_AHEAD = 16  # characters, for what a tokenizer drops of a prompt


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    return {
        "content": [token_logprob(token) for token in tokens],
        "refusal": None,
    }


class TextLogprobs:
    """The four arrays for the tokens of one text, which may be told in several parts.

    An offset is where a token begins in the text of the choice. The prompt is the caller's text and not that of its
    tokens: a token that the tokenizer added, such as the one that begins a prompt, takes no characters of it.
    """

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._echo = ""
        self._n_echoed = 0  # characters of it, up to the end of its last token
        self._n_said = 0

    def part(self, part: Echo | Piece) -> dict[str, list[Any]]:
        """For the tokens of the next part of the prompt or of the reply."""
        if isinstance(part, Echo):
            self._echo += part.text
            offsets = [self._place_in_echo(token) for token in part.logprobs]
        else:
            offsets = [self._place(token) for token in part.logprobs]
        tokens = part.logprobs
        return {
            "tokens": [_token(token.chosen) for token in tokens],
            "token_logprobs": [None if _is_unknown(token) else _number(token.chosen.logprob) for token in tokens],
            "top_logprobs": [None if _is_unknown(token) else _by_token(token) for token in tokens],
            "text_offset": offsets,
        }

    def _place(self, token: TokenLogprob) -> int:
        offset = len(self._echo) + self._n_said
        self._n_said += len(self._decoder.decode(token.chosen.data))
        return offset

    def _place_in_echo(self, token: TokenLogprob) -> int:
        text = self._decoder.decode(token.chosen.data)
        # Many tokenizers put a space before the first word.
        for spelled in (text, text.lstrip(" ")):
            place = self._echo.find(spelled, self._n_echoed, self._n_echoed + len(spelled) + _LOOK_AHEAD)
            if place >= 0:
                self._n_echoed = place + len(spelled)
                return place
        return self._n_echoed


def _by_token(token: TokenLogprob) -> Json:
    """The candidates by their texts, the token itself among them; of two with the same text, the likelier one."""
    by_token: Json = {}
    for candidate in (*token.top, token.chosen):
        by_token.setdefault(_token(candidate), _number(candidate.logprob))
    return by_token


def _token(candidate: Candidate) -> str:
    """The text of a token; where its bytes are not UTF-8 by themselves, the bytes in OpenAI's form."""
    try:
        return candidate.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in candidate.data)


def _is_unknown(token: TokenLogprob) -> bool:
    """Whether there is no prediction for its place, as for the first token of a prompt: its log-probability is nan."""
    return token.chosen.logprob != token.chosen.logprob


def _number(logprob: float) -> float:
    return max(LEAST_LOGPROB, logprob)
