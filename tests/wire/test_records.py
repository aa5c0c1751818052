from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from shimmy.wire import frames, records


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    corner: Point
    colour: Colour | None = None
    points: tuple[Point, ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()
    colours: tuple[Colour, ...] = ()
    either: str | tuple[int, ...] = ""
    other: Point | None = None


FULL = Picture(Point(1, "a"), Colour.RED, (Point(2), Point(3)), ((4, 0.5), (5, 1.0)), (Colour.RED,), (6, 7), Point(8))


@pytest.mark.parametrize("picture", [Picture(Point(1)), FULL, Picture(Point(1), points=(Point(2),) * 1000)])
def test_a_record_comes_back_as_it_was(picture: Picture) -> None:
    written = b"".join(frames.parts({"op": "picture", **records.to_wire(picture)}))
    (message,) = frames.FrameReader().feed(written)
    read = records.read(Picture, message)
    assert read == picture
    assert type(read.colour) is type(picture.colour)


def test_fields_may_travel_by_another_way() -> None:
    members = records.to_wire(FULL, "corner", "points")
    assert members.keys() == {"colour", "pairs", "colours", "either", "other"}
    assert records.read(Picture, members, corner=FULL.corner, points=FULL.points) == FULL


def test_a_field_that_is_not_there_is_an_error_even_where_it_has_a_default() -> None:
    with pytest.raises(KeyError, match="label"):
        records.read(Point, {"x": 1})


@pytest.mark.parametrize(
    "kind", [list[int], dict[str, int], Mapping, tuple[Point, int], Point | Picture, "int", Any, bytes]
)
def test_an_annotation_without_a_form_is_an_error(kind: Any) -> None:
    @dataclass(frozen=True)
    class Odd:
        field: kind

    with pytest.raises(TypeError, match="has no form"):
        records.read(Odd, {"field": []})
