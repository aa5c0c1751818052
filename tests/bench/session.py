"""One server as a workload sees it: what it is asked, and prompts that it has never seen.

Conversations go through `/v1/chat/completions` where the model has a chat template, and are written out as plain text
for `/v1/completions` where it has none.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from shimmy.formats.gguf.reader import read_header
from tests.bench.client import Message, Reply, ReplyFailed, stream, stream_chat
from tests.bench.peers import Peer
from tests.bench.running import RunningServer

WORDS = (  # noqa: SIM905 - one word a line would fill a page
    "river stone window garden winter silver market candle forest bridge letter shadow morning harbor engine island"
    " meadow thunder basket paper orange summer doctor kitchen"
).split()


class Session:
    """Asks `server`. Two sessions of one `seed` ask the same, so that each server of a round has the same to do."""

    def __init__(self, server: RunningServer, peer: Peer, model: Path, n_threads: int, seed: str) -> None:
        self.server = server
        self.peer = peer
        self.model = model
        self.n_threads = n_threads
        self._has_template = read_header(model).has_chat_template
        self._random = random.Random(seed)

    def words(self, n_words: int) -> str:
        """Text of about as many tokens and a few more, which begins like no other."""
        return f"{self._random.randrange(10**6)} {' '.join(self._random.choices(WORDS, k=n_words))}"

    def story(self, n_words: int = 12) -> str:
        """The beginning of a text that any model goes on with."""
        return f"{self.words(n_words)}. The story is about"

    async def complete(self, prompt: str, n_tokens: int, **fields: object) -> Reply:
        """Exactly `n_tokens`, where the server can ignore the end of generation; raises ReplyFailed."""
        fields = {"ignore_eos": True, **fields}
        return _spoken(await stream(self.server.port, self.model.stem, prompt, n_tokens, **fields))

    async def answer(self, messages: Sequence[Message], n_tokens: int, **fields: object) -> Reply:
        """The next turn of a conversation, of exactly `n_tokens` as above; raises ReplyFailed."""
        if not self._has_template:
            return await self.complete(_transcript(messages), n_tokens, **fields)
        fields = {"ignore_eos": True, **fields}
        return _spoken(await stream_chat(self.server.port, self.model.stem, messages, n_tokens, **fields))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def _transcript(messages: Sequence[Message]) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _spoken(reply: Reply) -> Reply:
    if not reply.text_at_s:
        raise ReplyFailed("a reply without any text")
    return reply
