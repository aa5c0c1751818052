import pytest

from shimmy.option_kinds import DEFAULT_HOST, Bind, Option, Source, find, integer, n_bytes


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("auto", Bind(DEFAULT_HOST, None)),
        ("1.2.3.4:80", Bind("1.2.3.4", 80)),
        ("localhost:0", Bind("localhost", 0)),
        ("localhost", Bind("localhost", None)),
        ("localhost:auto", Bind("localhost", None)),
        (":80", Bind(DEFAULT_HOST, 80)),
        ("[::1]:80", Bind("::1", 80)),
        ("[::1]", Bind("::1", None)),
        ("[::]:auto", Bind("::", None)),
        ("::1", Bind("::1", None)),
    ],
)
def test_every_way_to_write_an_address(text: str, bind: Bind) -> None:
    assert Bind.parse(text) == bind


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1G", 10**9),
        ("1g", 10**9),
        ("1GB", 10**9),
        ("1.5 gb", 1_500_000_000),
        ("512M", 512 * 10**6),
        ("2GiB", 2 * 2**30),
        ("100Ki", 102_400),
        ("1t", 10**12),
        ("123456", 123_456),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert n_bytes(text) == size


@pytest.mark.parametrize(
    ("flags", "environment", "file", "expected"),
    [
        ({"n": "1"}, {"SHIMMY_N": "2", "OLD_N": "3"}, {"n": 4}, (1, Source.FLAG)),
        ({"n": None}, {"SHIMMY_N": "2", "OLD_N": "3"}, {"n": 4}, (2, Source.ENVIRONMENT)),
        ({}, {"SHIMMY_N": "", "OLD_N": "3"}, {"n": 4}, (3, Source.ENVIRONMENT)),
        ({}, {}, {"n": 4}, (4, Source.FILE)),
        ({}, {}, {}, (5, Source.DEFAULT)),
    ],
)
def test_the_strongest_source_that_has_a_value_counts(
    flags: dict[str, str | None], environment: dict[str, str], file: dict[str, int], expected: tuple[int, Source]
) -> None:
    option = Option("n", integer(0, 9), 5, "a number", "N", ("OLD_N",))
    assert find(option, flags, environment, file) == expected
