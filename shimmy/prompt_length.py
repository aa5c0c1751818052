"""Whether a prompt fits a context, as far as its length alone tells: what cannot fit is neither sent nor tokenized.

Knows prompts and numbers. The worker, which has the tokens, counts all others; what a chat becomes, its template says.
"""

from collections.abc import Sequence

from shimmy.errors import ContextExceeded
from shimmy.messages.request import EmbeddingInput, FillPrompt, Prompt, TextPrompt, TokenPrompt


def refuse_longer(prompt: Prompt, n_ctx: int, longest_token_bytes: int | None = None) -> None:
    """Raise ContextExceeded for a prompt that cannot fit `n_ctx` tokens with one more behind it.

    No token stands for more than `longest_token_bytes` of a text, where that is known.
    """
    match prompt:
        case TokenPrompt(tokens):
            n_tokens, is_exact = len(tokens), True
        case TextPrompt(text):
            n_tokens, is_exact = _n_least(text, longest_token_bytes), False
        case FillPrompt(prefix, suffix):
            n_tokens, is_exact = _n_least(prefix, longest_token_bytes) + _n_least(suffix, longest_token_bytes), False
        case _:
            return
    if n_tokens >= n_ctx:
        # OpenAI's words: some clients know this error by them alone.
        told = _told(n_tokens, is_exact=is_exact)
        raise ContextExceeded(
            f"the prompt has {told} tokens, this model's maximum context length is {n_ctx} tokens: shorten the prompt "
            "or raise `--ctx-size`"
        )


def refuse_longer_inputs(inputs: Sequence[EmbeddingInput], n_ctx: int, longest_token_bytes: int | None = None) -> None:
    """The same for what embeddings are wanted of; an input may have as many tokens as there is room for."""
    for index, given in enumerate(inputs):
        is_exact = not isinstance(given, str)
        n_tokens = _n_least(given, longest_token_bytes) if isinstance(given, str) else len(given)
        if n_tokens > n_ctx:
            name = f"input[{index}]" if len(inputs) > 1 else "input"
            told = _told(n_tokens, is_exact=is_exact)
            raise ContextExceeded(f"`{name}` has {told} tokens, the model takes {n_ctx} here: shorten it", param=name)


def _n_least(text: str, longest_token_bytes: int | None) -> int:
    """How many tokens the text has at least: each of its characters takes a byte or more."""
    return -(-len(text) // longest_token_bytes) if longest_token_bytes else 0


def _told(n_tokens: int, *, is_exact: bool) -> str:
    return str(n_tokens) if is_exact else f"at least {n_tokens}"
