"""How the layers of a model are divided among other machines, devices of this one, and its processor."""

import pytest

from shimmy.gpus.placement import DeviceWish, LayerSizes
from shimmy.gpus.spread import Place, spread

GB = 10**9
MODEL = LayerSizes(n_layers=9, layer=GB, output=GB, fixed=GB // 10)  # ten layers with its output
ANY = DeviceWish()


def processor(number: int, free: float) -> Place:
    return Place(f"box{number}:50052/CPU", int(free * GB), is_processor=True)


def card(name: str, free: float) -> Place:
    return Place(name, int(free * GB))


@pytest.mark.parametrize(
    ("places", "own_gb", "layers"),
    [
        ([processor(1, 100)], 100, (5,)),  # as much as here, though either has room for all
        ([processor(1, 100), processor(2, 100)], 100, (4, 3)),
        ([processor(1, 6)], 2, (5,)),  # what it has room for
        ([processor(1, 20)], 2, (8,)),
        ([card("Vulkan0", 100), processor(1, 100)], 100, (5, 5)),  # with a GPU the processor has what is left over
        ([card("box1:50052/Vulkan0", 4.2)], 100, (4,)),
        ([card("Vulkan0", 0), processor(1, 5)], 100, (4,)),
    ],
)
def test_by_free_memory(places: list[Place], own_gb: float, layers: tuple[int, ...]) -> None:
    offload = spread(ANY, places, own_gb * GB, MODEL, [])
    assert offload.layers == layers
    assert offload.devices == tuple(place.name for place in places if place.free_bytes)
    assert sum(offload.n_bytes) == sum(MODEL.on_each(layers))
    assert all(
        n <= place.free_bytes for n, place in zip(offload.n_bytes, (p for p in places if p.free_bytes), strict=True)
    )


def test_by_a_persons_word() -> None:
    places = [processor(1, 1), processor(2, 1)]
    assert spread(DeviceWish(None, 10), places, GB, MODEL, []).layers == (5, 5)
    assert spread(DeviceWish(None, 4, (3, 1)), places, GB, MODEL, []).layers == (3, 1)
    assert spread(DeviceWish(None, 4, (1, 0)), places, GB, MODEL, []).devices == ("box1:50052/CPU",)
    note = spread(DeviceWish(None, 4, (1,)), places, GB, MODEL, []).note
    assert note == "`--tensor-split` has 1 number for 2 devices"


def test_why_there_is_nothing() -> None:
    assert (
        spread(ANY, [], GB, MODEL, ["box1:50052 is not used: it is busy"]).note == "box1:50052 is not used: it is busy"
    )
    told = spread(ANY, [processor(1, 0.5)], 100 * GB, MODEL, ["another is not there"])
    assert (told.devices, told.note) == (
        (), "another is not there; not one of its layers fits: box1:50052/CPU has 500 MB free",
    )  # fmt: skip
    assert "how many layers" in spread(ANY, [processor(1, 9)], GB, LayerSizes(0, GB, GB, GB), []).note


def test_a_machine_that_is_missing_is_told_beside_those_that_compute() -> None:
    assert spread(ANY, [processor(1, 100)], 100 * GB, MODEL, ["box2:50052 is not used: x"]).note == (
        "box2:50052 is not used: x"
    )
