"""Text of a model without a scheduler: one chain, one sequence, one decode for each token."""

from collections.abc import Sequence

from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.model import LlamaModel
from shimmy.engine.llama.sampler import LlamaSampler
from shimmy.messages import sampling_limits
from shimmy.messages.request import SamplingParams

N_CTX, N_BATCH, N_SEQUENCES = 256, 64, 4  # llama.cpp rounds a context up to 256 cells
GREEDY = SamplingParams(temperature=0)
# As random as can be: every token of the vocabulary may come.
WIDE = SamplingParams(temperature=100, top_k=0, top_p=1, min_p=0)
# A choice of several likely tokens, made by chance.
LOOSE = SamplingParams(temperature=3, top_k=20, top_p=1, min_p=0)
# All stages at once that a chain can have.
EVERYTHING = SamplingParams(
    temperature=0.9, dynatemp_range=0.5, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.9, top_n_sigma=3, min_keep=2,
    repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5, dry_multiplier=0.8, xtc_probability=0.5,
)  # fmt: skip
PROMPT = "hello world"


def tokens_of(model: LlamaModel, text: str) -> list[int]:
    return model.vocab.tokenize(text, add_special=True, parse_special=True)


def decode(model: LlamaModel, tokens: Sequence[int], position: int = 0, sequence: int = 0) -> int:
    """Compute `tokens` of one sequence; the row with the logits of the last."""
    row = -1
    for start in range(0, len(tokens), N_BATCH):
        chunk = tokens[start : start + N_BATCH]
        model.backend.batch.clear()
        row = model.backend.batch.add(
            chunk, position + start, sequence, n_outputs=int(start + len(chunk) == len(tokens))
        )
        assert model.backend.decode() == 0
    return row


def sampler(model: LlamaModel, params: SamplingParams, *, seed: int = 1, history: Sequence[int] = ()) -> LlamaSampler:
    """A chain as the worker builds it, shown `history`."""
    sampling_limits.check(params, n_vocab=model.vocab.n_vocab)
    chain = sampler_chain.chain(params, seed=seed, n_ctx=model.n_ctx)
    return model.new_sampler(chain, params.logit_bias, params.dry_sequence_breakers, history)


def pick(model: LlamaModel, row: int, params: SamplingParams, *, seed: int = 1, history: Sequence[int] = ()) -> int:
    """One token from a row's logits."""
    chain = sampler(model, params, seed=seed, history=history)
    token = chain.sample(row)
    chain.close()
    return token


def generate(
    model: LlamaModel,
    prompt: Sequence[int],
    n_tokens: int,
    params: SamplingParams = GREEDY,
    *,
    seed: int = 1,
    sequence: int = 0,
    n_kept: int = 0,
) -> list[int]:
    """`n_tokens` after `prompt`, whose first `n_kept` tokens are resident; the last one's cells are not computed."""
    chain = sampler(model, params, seed=seed, history=prompt)
    row = decode(model, prompt[n_kept:], n_kept, sequence)
    generated = [chain.sample(row)]
    while len(generated) < n_tokens:
        row = decode(model, generated[-1:], len(prompt) + len(generated) - 1, sequence)
        generated.append(chain.sample(row))
    chain.close()
    return generated


def anew(model: LlamaModel, prompt: Sequence[int], n_tokens: int, params: SamplingParams = GREEDY) -> list[int]:
    """The same from an empty sequence."""
    model.backend.forget(0, 0)
    return generate(model, prompt, n_tokens, params)
