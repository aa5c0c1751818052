"""What reaches a caller through a worker: why the engine gives up on a file, and where stop strings count."""

from pathlib import Path

import pytest

from shimmy.errors import ModelUnavailable
from shimmy.messages.request import ChatPrompt, Message, TextPrompt
from tests.engine.damaged import with_items, with_key
from tests.engine.test_main import answer, worker
from tests.fakes import on_loop
from tests.tiny_models import (
    ARRAY,
    CHATML,
    STRING,
    UINT32,
    Items,
    encode_gguf,
    model_metadata,
    model_tensors,
    vocabulary,
    write_tiny_model,
)

MADE = model_metadata("tiny", 512, CHATML)


@on_loop
async def test_what_the_engine_gives_up_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    texts = [text for text, _ in vocabulary()]
    for metadata, reason in (
        (
            with_items(MADE, "tokenizer.ggml.tokens", STRING, [*texts[:-1], texts[300]]),
            f"tokens 300 and {len(texts) - 1}",
        ),
        (with_key(MADE, "llama.attention.head_count_kv", ARRAY, Items(UINT32, [4, 0])), "GGML_ASSERT"),
    ):
        path.write_bytes(encode_gguf(metadata, model_tensors(0)))
        with pytest.raises(ModelUnavailable, match=reason) as caught:
            async with worker(path):
                pass
        assert caught.value.message.startswith("the engine cannot use `tiny.gguf`: ")
        assert "signal" not in caught.value.message


@on_loop
async def test_reasoning_is_no_place_to_stop(tmp_path: Path) -> None:
    """Neither a stop string in what a model thinks ends its reply, nor what follows there is counted otherwise."""
    template = "{% if false %}</think>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    prompt = ChatPrompt((Message("user", "hello"),))
    async with worker(write_tiny_model(tmp_path, chat_template=template)) as client:
        free = await answer(client, prompt, n_predict=24)
        assert free
        told = await answer(client, prompt, n_predict=24, stop=(free[:3],))
        assert told == free, "all of it is reasoning"
        plain = await answer(client, TextPrompt("hello"), n_predict=24)
        assert (
            await answer(client, TextPrompt("hello"), n_predict=24, stop=(plain[3:6],))
            == plain.partition(plain[3:6])[0]
        )
