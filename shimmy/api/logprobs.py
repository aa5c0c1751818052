"""A token and its candidates with their log-probabilities, as OpenAI's chats and Responses write them."""

from shimmy.api.request_fields.field_kinds import Json
from shimmy.messages.event import LEAST_LOGPROB, Candidate, TokenLogprob


def token_logprob(token: TokenLogprob) -> Json:
    return {**_candidate(token.chosen), "top_logprobs": [_candidate(candidate) for candidate in token.top]}


def _candidate(candidate: Candidate) -> Json:
    return {
        "token": candidate.data.decode("utf-8", "replace"),
        "bytes": [*candidate.data],
        "logprob": max(candidate.logprob, LEAST_LOGPROB),
    }
