"""Each family of the page on SafeTensors has golden ids of a tokenizer with the parts that it is published with."""

import pytest

from shimmy.formats.convert.families.table import FAMILIES
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import pretokenizers
from tests.formats.tokenizer.test_vocab import GOLDEN
from tests.published_tokenizers import CASES, REFUSED, WITHOUT


def test_each_family_has_golden_ids_of_its_tokenizer_or_is_refused() -> None:
    types = {family.model_type for family in FAMILIES}
    assert types == CASES.keys() | WITHOUT.keys()
    assert not CASES.keys() & WITHOUT.keys()
    assert {case for cases in CASES.values() for case in cases} <= GOLDEN.keys()
    assert all(CASES.values())
    assert {*WITHOUT.values()} <= REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_what_would_be_cut_otherwise_is_refused(name: str, ignore_merges: bool) -> None:
    with pytest.raises(Unconvertible, match="guessing would give wrong tokens"):
        pretokenizers.name(REFUSED[name], [], ignore_merges=ignore_merges)
