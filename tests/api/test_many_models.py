"""Lists of many models are made piece by piece, so that the streams of others go on meanwhile."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.api.app import create_app
from shimmy.catalog.assign_names import ModelLocation
from shimmy.catalog.catalog import Catalog
from shimmy.errors import ModelNotFound
from tests.fakes import FakeWorker, fetch, model, on_loop, services

N_MODELS = 5_000
MODELS = [
    replace(model(f"model-{number}"), places=(ModelLocation.of_file(Path(f"/{number}/Model-{number}.gguf")),))
    for number in range(N_MODELS)
]


@pytest.mark.parametrize(("path", "field"), [("/v1/models", "data"), ("/api/models", "models")])
@on_loop
async def test_others_have_their_turns_while_a_list_is_made(path: str, field: str) -> None:
    app = create_app(services(FakeWorker(), models=MODELS))
    n_turns = 0

    async def count_turns() -> None:
        nonlocal n_turns
        while True:
            await asyncio.sleep(0)
            n_turns += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.sleep(0)
    reply = await fetch(app, "GET", path)
    counting.cancel()
    assert len(reply.json()[field]) == N_MODELS
    assert n_turns >= N_MODELS // 250


def test_names_that_are_none_are_compared_with_few_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import difflib

    compared: list[int] = []

    def close(_: str, names: list[str], n_most: int) -> list[str]:
        compared.append(len(names))
        return names[:n_most]

    monkeypatch.setattr(difflib, "get_close_matches", close)
    with pytest.raises(ModelNotFound, match="did you mean"):
        Catalog(MODELS).resolve("model-77777")
    assert compared == [500]
