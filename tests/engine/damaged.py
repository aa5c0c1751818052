"""Tiny models with something wrong in them, and a program that loads files and says what became of each.

`python -m tests.engine.damaged` reads a line of JSON for each file, its path and a context length, and answers with
one: `served`, or `refused` with the reason, or how the process ended that loaded it. Each is loaded in a process of its
own, forked from one that has no threads; it reads prompts and samples a token, as a request would.
"""

import json
import math
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from shimmy.engine.llama import sampler_chain
from shimmy.errors import ShimmyError
from shimmy.wire import worker_options
from tests.tiny_models import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    Items,
    Metadata,
    Tensor,
    Value,
)

DEADLINE_S = 30.0
_MAX_ANSWER_BYTES = 4096

# -- what is wrong

_OTHERS: tuple[tuple[int, Value], ...] = (
    (UINT32, 7), (INT32, -1), (STRING, "text"), (FLOAT32, 0.5), (UINT64, 2**40), (BOOL, True), (UINT8, 1),
    (ARRAY, Items(UINT32, [1, 2])), (ARRAY, Items(STRING, ["a"])), (ARRAY, Items(UINT32, [])),
    (ARRAY, Items(FLOAT32, [1.0, 2.0])),
)  # fmt: skip
_EXTREMES: dict[int, tuple[Value, ...]] = {
    UINT32: (0, 1, 3, 16, 511, 512, 513, 2**31 - 1, 2**31, 2**32 - 1),
    FLOAT32: (0.0, -1.0, math.nan, math.inf, 1e-30, 1e30),
    BOOL: (True, False),
    STRING: ("", "none", "no_vocab", "x" * 300, "gpt2", "llama", "bert", "t5", "rwkv", "plamo2", "\xff"),
}


def with_key(metadata: Metadata, key: str, code: int, value: Value) -> Metadata:
    return [*(row for row in metadata if row[0] != key), (key, code, value)]


def with_items(metadata: Metadata, key: str, code: int, items: Sequence[int | float | str | bytes]) -> Metadata:
    return [(name, kind, Items(code, items) if name == key else value) for name, kind, value in metadata]


def keys_changed(metadata: Metadata) -> Iterator[tuple[str, Metadata]]:
    """Each key removed, of another type, and with extreme values."""
    for place, (key, code, _) in enumerate(metadata):
        before, behind = metadata[:place], metadata[place + 1 :]
        yield f"without {key}", before + behind
        for other, value in _OTHERS:
            if other != code or code == ARRAY:
                yield f"{key} of type {other}: {value!r}", [*before, (key, other, value), *behind]
        for extreme in _EXTREMES.get(code, ()):
            yield f"{key} = {extreme!r:.40}", [*before, (key, code, extreme), *behind]


def tensors_changed(tensors: Sequence[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """Each tensor removed, of another shape, of another type."""
    for place, tensor in enumerate(tensors):
        before, behind = [*tensors[:place]], [*tensors[place + 1 :]]
        shape, n_items, data = tensor.shape, math.prod(tensor.shape), tensor.data
        n_blocks = n_items // 32
        yield f"without {tensor.name}", before + behind
        changes = [
            ("transposed", replace(tensor, shape=shape[::-1])),
            ("flat", replace(tensor, shape=(n_items,))),
            ("empty", replace(tensor, shape=(0, *shape[1:]), data=b"")),
            ("half", replace(tensor, shape=(*shape[:-1], shape[-1] // 2), data=data[: len(data) // 2])),
            ("F16", replace(tensor, code=1, data=data[: len(data) // 2])),
            ("I8", replace(tensor, code=24, data=data[: len(data) // 4])),
            ("I32", replace(tensor, code=26)),
            ("Q4_0", replace(tensor, code=2, data=bytes(18 * n_blocks))),
            ("Q8_1", replace(tensor, code=9, data=bytes(36 * n_blocks))),
            ("of another name", replace(tensor, name="blk.9999.attn_q.weight")),
        ]
        for name, changed in changes:
            yield f"{tensor.name} {name}", [*before, changed, *behind]


# -- the program


def _child(path: Path, n_ctx: int) -> str:
    from shimmy.engine import loading
    from shimmy.messages.request import ChatPrompt, Message, SamplingParams, TextPrompt

    model, offers = loading.load(
        worker_options.WorkerOptions(str(path), n_ctx, 4, 64, 1, None, None), 1, lambda _: None
    )
    preparer, _ = loading.validate(model, offers, worker_options.WorkerOptions(str(path), n_ctx, 4, 64, 1, None, None))
    if not model.writes:
        return "served"
    user = Message("user", "hello <|im_end|> world")
    for prompt in (TextPrompt("hello w\u00f6rld \U0001f600\n\0\t<s>"), ChatPrompt((user,)), TextPrompt("a" * 400)):
        with suppress(ShimmyError):
            tokens = preparer.tokens(prompt)[: model.n_ctx - 1]
            model.backend.forget(0, 0)
            row = 0
            for start in range(0, len(tokens), model.backend.n_batch):
                model.backend.batch.clear()
                row = model.backend.batch.add(tokens[start : start + model.backend.n_batch], start, 0, n_outputs=1)
                if model.backend.decode() != 0:
                    return "could not decode"
            chain = sampler_chain.chain(SamplingParams(), seed=1, n_ctx=model.n_ctx)
            model.vocab.piece(model.new_sampler(chain, (), (), tokens).sample(row))
    return "served"


def _run(path: Path, n_ctx: int, answer: int) -> NoReturn:
    from shimmy.engine import loading
    from shimmy.engine.llama.binding import aborts

    def tell(text: str) -> NoReturn:
        os.write(answer, text.encode("utf-8", "replace")[:_MAX_ANSWER_BYTES])
        os._exit(0)

    aborts.handler = lambda reason: tell(f"refused: {loading.explained(path, reason)}")
    try:
        tell(_child(path, n_ctx))
    except ShimmyError as error:
        tell(f"refused: {error.message}")
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        tell(f"failed: {traceback.format_exc()}")


def _outcome(path: Path, n_ctx: int) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _run(path, n_ctx, writer)
    os.close(writer)
    is_over = bool(select.select([reader], [], [], DEADLINE_S)[0])
    answer = os.read(reader, _MAX_ANSWER_BYTES).decode("utf-8", "replace") if is_over else ""
    os.close(reader)
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return answer or (
        f"ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "said nothing"
    )


def main() -> None:
    import shimmy.engine.loading
    import shimmy.engine.prepare_prompt  # noqa: F401 - once for all of them

    for line in sys.stdin:
        path, n_ctx = json.loads(line)
        sys.stdout.write(json.dumps(_outcome(Path(path), n_ctx)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
