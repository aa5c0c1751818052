"""How likely llama.cpp finds a text after another: the binding alone, text by text, without scheduler or server."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend

N_CTX = 512


class Reference:
    """The model at a path, in this process."""

    def __init__(self, path: Path) -> None:
        self._cpu = CpuBackend(variants.libraries(LIBRARY_FOLDER, None))
        self._model = llama.llama_model_load_from_file(os.fsencode(path), llama.llama_model_default_params())
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = N_CTX
        self._context = llama.llama_init_from_model(self._model, params)

    def tokens(self, text: str) -> list[int]:
        """Nothing added, special tokens read as such."""
        data = text.encode()
        buffer = (llama.llama_token * (len(data) + 1))()
        n_tokens = llama.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, True)
        assert 0 <= n_tokens <= N_CTX
        return list(buffer[:n_tokens])

    def ends_after(self, tokens: Sequence[int]) -> bool:
        """Whether the likeliest next token ends the text."""
        return bool(llama.llama_vocab_is_eog(self._vocab, int(self._logits(tokens)[-1].argmax())))

    def loglikelihood(self, tokens: Sequence[int], n_context: int) -> tuple[float, bool]:
        """The logarithm of the probability of what follows the first `n_context` tokens, and whether each token of it
        is the likeliest one."""
        logits = self._logits(tokens).astype(np.float64)[n_context - 1 : -1]
        chosen = np.array(tokens[n_context:])
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        likelihood = float(logprobs[np.arange(len(chosen)), chosen].sum())
        return likelihood, bool((logits.argmax(axis=1) == chosen).all())

    def _logits(self, tokens: Sequence[int]) -> Any:
        """After each token, n_vocab values."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        array = (llama.llama_token * len(tokens))(*tokens)
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        for index, token in enumerate(array):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.n_tokens = len(tokens)
        assert llama.llama_decode(self._context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, index), (self._n_vocab,)).copy()
            for index in range(len(tokens))
        ]
        llama.llama_batch_free(batch)
        return np.stack(rows)
