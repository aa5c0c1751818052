"""One client of the soak: its own random numbers, its connection, and the texts that it draws."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.session import WORDS
from tests.bench.soak.connection import Answer, Connection

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Models:
    """What is served: a model that nobody touches, one that is swapped and unloaded, and one for embeddings.

    `place` is the file of the second, `sources` what it is replaced with in turn.
    """

    steady: str
    other: str
    encoder: str
    place: Path
    sources: Sequence[Path]
    n_long_words: int  # of a prompt that fits
    n_too_many_words: int  # of one that does not


class Client:
    """Two clients of one seed draw the same."""

    def __init__(self, port: int, models: Models, seed: str) -> None:
        self.models = models
        self.random = random.Random(seed)
        self.connection = Connection(port)
        self.chats: list[list[Json]] = []  # conversations that it may go on with
        self._shared = random.Random("shared by all clients")
        self._prefixes = [self._words(self._shared, models.n_long_words // 2) for _ in range(3)]

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def words(self, n_most: int) -> str:
        return self._words(self.random, self.random.randint(1, n_most))

    def prompt(self) -> str:
        """Short, long, or one that begins like those of others."""
        kind = self.random.choices(("short", "long", "shared"), (6, 1, 2))[0]
        if kind == "short":
            return self.words(20)
        if kind == "long":
            return self._words(self.random, self.models.n_long_words)
        return f"{self.random.choice(self._prefixes)} {self.words(8)}"

    def text_model(self) -> str:
        return self.models.steady if self.chance(0.7) else self.models.other

    async def ask(self, path: str, body: object, method: str = "POST") -> Answer:
        if self.chance(0.3):
            self.connection.close()
        return await self.connection.ask(method, path, body)

    def replace_model(self) -> None:
        """By rename, as it should be done. A link and not a copy, and a new time, which a link has not."""
        unfinished = self.models.place.with_suffix(f".{self.random.randrange(10**9)}.part")
        os.link(self.random.choice(self.models.sources), unfinished)
        unfinished.rename(self.models.place)

    @staticmethod
    def _words(numbers: random.Random, n_words: int) -> str:
        return " ".join(numbers.choices(WORDS, k=n_words))
