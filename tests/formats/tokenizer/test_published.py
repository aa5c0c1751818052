"""Each family of the page on SafeTensors has golden ids of a tokenizer with the parts that it is published with."""

import pytest

from shimmy.formats.convert.families.table import FAMILIES
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import pretokenizers
from tests.formats.tokenizer.test_vocab import GOLDEN
from tests.published_tokenizers import CASES, REFUSED, WORDS


def test_each_family_has_golden_ids_of_its_tokenizer() -> None:
    types = {family.model_type for family in FAMILIES}
    assert types == CASES.keys()
    assert {case for cases in CASES.values() for case in cases} <= GOLDEN.keys()
    assert all(CASES.values())


def test_what_llama_cpp_cannot_cut_is_cut_here() -> None:
    assert {name: pretokenizers.words(steps) for name, steps in WORDS.items()} == {name: name for name in WORDS}
    assert {*WORDS} == {*pretokenizers.WORDS.values()}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_what_would_be_cut_otherwise_is_refused(name: str, ignore_merges: bool) -> None:
    assert pretokenizers.words(REFUSED[name]) == ""
    with pytest.raises(Unconvertible, match="guessing would give wrong tokens"):
        pretokenizers.name(REFUSED[name], [], ignore_merges=ignore_merges)
