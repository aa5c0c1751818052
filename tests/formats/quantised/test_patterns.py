"""Regular expressions of configurations match what `re` matches, and no expression takes more steps than there are."""

import itertools
import random
import re

import pytest

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised import patterns
from shimmy.formats.quantised.patterns import ModuleNames

MODULES = (
    "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.gate_proj", "model.layers.23.mlp.experts.7.down_proj",
    "lm_head", "",
)  # fmt: skip
REAL = (
    ".*self_attn.*", r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj$", r".*\.(?:[0-9]|1[0-9])\..*", ".*",
    r".*mlp\.experts\.\d+\.down_proj$", r"^model\.layers\.(0|1|23)\.", "lm_head|.*q_proj", r".*layers\.1{2}\.",
    r".*\.\d{2,}\..*", r"model\.layers?\.[^1-9]", r"[\w.]+", "(a|)",
)  # fmt: skip
# 2^28 ways; 256 cubes of a name's length.
HOSTILE = r"(\w|.|\w)" * 16 + "X", r"(.*|\w*)" * 15 + "X", ".*.*.*.*.*.*.*X", "(a|a)" * 16 + "b"


@pytest.mark.parametrize("pattern", REAL)
def test_real_expressions_match_as_the_library_has_it(pattern: str) -> None:
    names = ModuleNames()
    accepted = [name for name in MODULES if names.match(pattern, name)]
    assert accepted == [name for name in MODULES if re.match(pattern, name)]


def test_any_expression_that_is_accepted_matches_as_the_library_has_it() -> None:
    rng, n_tried = random.Random(3), 0
    atoms = (
        "a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^b]", "(a|b)", "(?:ab|a*|)", "a*", ".+", "b?", "a{2}", "b{1,}",
        ".{0,2}", "|", "^", "$", "(", ")",
    )  # fmt: skip
    texts = ["".join(text) for n in range(5) for text in itertools.product("ab.", repeat=n)]
    for _ in range(3000):
        pattern = "".join(rng.choices(atoms, k=rng.randrange(1, 7)))
        names = ModuleNames()
        try:
            names.match(pattern, "")
        except Unconvertible:
            continue
        n_tried += 1
        for text in rng.sample(texts, 10):
            assert names.match(pattern, text) == bool(re.match(pattern, text)), (pattern, text)
    assert n_tried > 1000


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_expression_takes_few_steps(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_STEPS", 2000)
    assert not ModuleNames().match(pattern, "a" * 60)


def test_many_expressions_for_many_modules_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_STEPS", 20_000)
    names = ModuleNames()

    def match_all() -> None:
        for i, n in itertools.product(range(1000), range(10)):
            names.match(r"(\w|.|\w)" * 16 + "X" * n, f"{'ab' * 50}{i}")

    with pytest.raises(Unconvertible, match="too complex for as many modules"):
        match_all()


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "a**", "(a", "a)", "(?=a)", r"(a)\1", "[b-a]", "a{3,2}", "a" * 300, "*a"]
)
def test_what_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(Unconvertible, match="too complex"):
        ModuleNames().match(pattern, "a")
