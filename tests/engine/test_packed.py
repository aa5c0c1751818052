"""Libraries that are loaded from memory are not taken for each other."""

from pathlib import Path

from shimmy.engine.packed import in_memory


def test_a_library_is_read_from_its_path() -> None:
    with in_memory("some", b"some bytes") as path:
        assert Path(path).read_bytes() == b"some bytes"


def test_no_two_libraries_have_the_same_path() -> None:
    # The first one's descriptor is free again, and the dynamic loader would take the second for the first.
    paths = []
    for name in ("one", "two", "three"):
        with in_memory(name, name.encode()) as path:
            paths.append(path)
            assert Path(path).read_bytes() == name.encode()
    assert len(set(paths)) == 3
