"""Names that `cp` gives and `rm` removes, as people and their systems write them."""

import json
import unicodedata
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from shimmy import config
from shimmy.catalog.alias_file import AliasFile
from shimmy.catalog.catalog import Registry
from shimmy.commands.console import CommandCall
from shimmy.commands.model_files.copy import copy
from shimmy.commands.model_files.remove import remove
from shimmy.commands.models import find_models, list_models
from shimmy.system.frozen_program import UnpackedFolder
from tests.tiny_models import write_tiny_model

Call = Callable[..., CommandCall]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A command beside the model `tiny`."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path, "tiny")
    variables = {"XDG_CONFIG_HOME": f"{tmp_path}/config", "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    settings = config.load({"model_dirs": [str(tmp_path)], "alias": ["gpt-4o=tiny", "any-*=tiny"]}, variables)
    return lambda **options: CommandCall(settings, Namespace(**options), UnpackedFolder(), ())


def test_a_list_has_aliases_and_what_they_mean(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    alias_file = call().config.alias_file
    assert alias_file is not None
    AliasFile(alias_file).put("small", "tiny")
    AliasFile(alias_file).put("old", "gone")
    list_models(call(json=True))
    assert [(model["name"], model["aliases"]) for model in json.loads(capsys.readouterr().out)] == [
        ("tiny", ["gpt-4o", "small"])
    ]
    list_models(call(json=False))
    table = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in table] == [
        ["ALIAS", "MODEL"], ["gpt-4o", "tiny"], ["old", "gone (not there)"], ["small", "tiny"],
    ]  # fmt: skip


def test_an_alias_is_the_same_name_however_its_accents_are_written(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = call().config
    written, other = unicodedata.normalize("NFD", " Été "), unicodedata.normalize("NFC", "été")
    assert copy(call(name="tiny", alias_name=written)) == 0
    assert settings.alias_file is not None
    assert json.loads(settings.alias_file.read_text()) == {other: "tiny"}
    registry = Registry(kept=AliasFile(settings.alias_file))
    registry.publish(find_models(settings))
    assert registry.resolve(unicodedata.normalize("NFD", "été")).name == "tiny"
    assert remove(call(names=[written], yes=False)) == 0
    assert json.loads(settings.alias_file.read_text()) == {}
    assert capsys.readouterr().out == f"{other} is tiny\nremoved the alias {written}\n"
