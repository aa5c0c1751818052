"""Which layers go to which devices."""

from dataclasses import replace

import pytest

from shimmy.gpus.placement import DeviceWish, FreeDevice, LayerSizes, divided, named, place, unused_reason
from shimmy.messages.device import Device, DeviceBackend, DeviceKind
from shimmy.wire.worker_options import Offload

GB = 10**9
# Ten layers and the output take 1 + 10 + 2 GB.
SIZES = LayerSizes(n_layers=10, layer=GB, output=2 * GB, fixed=GB)


def device(index: int, free_gb: float, kind: DeviceKind = DeviceKind.DISCRETE, unusable: str = "") -> FreeDevice:
    described = Device(index, f"Card {index}", kind, "NVIDIA", "driver 1", "1.3.0", 24 * GB, None, unusable)
    return FreeDevice(described, int(free_gb * GB))


def placed(*found: FreeDevice, wish: DeviceWish | None = None, reason: str = "") -> Offload:
    return place(wish or DeviceWish(), found, reason, SIZES)


def test_a_device_with_room_has_the_whole_model() -> None:
    assert placed(device(0, 13)) == Offload(("Vulkan0",), (11,), (13 * GB,))


def test_as_many_layers_as_fit_and_the_reason_for_no_more() -> None:
    offload = placed(device(0, 12.9))
    assert (offload.layers, offload.n_bytes) == ((10,), (12 * GB,))
    assert offload.note == "10 of 11 layers fit: all of them take 13.0 GB, and Vulkan0 has 12.9 GB free"
    assert placed(device(0, 3.5), wish=DeviceWish(names=("Vulkan0",))).layers == (1,)


def test_without_room_for_one_layer_the_processor_has_all() -> None:
    offload = placed(device(0, 2.9))
    assert (offload.devices, offload.layers, offload.n_bytes) == ((), (), ())
    assert offload.note.startswith("0 of 11 layers fit")


def test_a_few_layers_are_put_on_a_device_that_is_named_and_on_no_other() -> None:
    assert placed(device(0, 4.5)) == Offload(
        note="2 of 11 layers fit: all of them take 13.0 GB, and Vulkan0 has 4.5 GB free; so few are put on a device "
        "that is named with `--device`"
    )
    assert placed(device(0, 5)).layers == (3,)
    for wish in (DeviceWish(names=("Vulkan0",)), DeviceWish(n_layers=2)):
        assert placed(device(0, 4.5), wish=wish).layers == (2,)


def test_a_small_device_beside_a_large_one_is_left_out_and_that_is_told() -> None:
    offload = placed(device(0, 2.5), device(1, 12))
    assert (offload.devices, offload.layers) == (("Vulkan1",), (10,))
    assert offload.note.endswith("; Vulkan0 would have too few to be worth it, unless named with `--device`")
    assert placed(device(0, 2.5), device(1, 13)).note == "", "the large one has all"


def test_many_equal_devices_share_a_model_that_fills_them() -> None:
    sizes = replace(SIZES, n_layers=79)
    found = [device(index, 10) for index in range(8)]
    layers = place(DeviceWish(), found, "", sizes).layers
    assert (len(layers), min(layers)) == (8, 8)


def test_one_device_that_is_enough_is_used_alone_and_the_freest_of_them() -> None:
    assert placed(device(0, 8), device(1, 14), device(2, 20)).devices == ("Vulkan2",)


def test_two_devices_share_what_one_has_no_room_for() -> None:
    offload = placed(device(0, 8), device(1, 8))
    assert (offload.devices, offload.layers) == (("Vulkan0", "Vulkan1"), (6, 5))
    assert offload.n_bytes == (7 * GB, 7 * GB)  # the second one has the output
    assert offload.note == ""
    assert placed(device(0, 4), device(1, 12)).layers == (3, 8)


def test_a_split_is_kept_even_where_one_device_would_do() -> None:
    wish = DeviceWish(split=(1, 0))
    assert placed(device(0, 24), device(1, 24), wish=wish).devices == ("Vulkan0",)
    assert placed(device(0, 24), device(1, 24), wish=replace(wish, split=(3, 1))).layers == (8, 3)
    offload = placed(device(0, 3), device(1, 24), wish=replace(wish, split=(1, 1)))
    assert offload.layers == (2, 3)  # the first one has no room for more, and the shares stay
    assert "Vulkan0 has 3.0 GB and Vulkan1 has 24.0 GB free" in offload.note


def test_a_split_for_other_devices_is_refused() -> None:
    offload = placed(device(0, 24), wish=DeviceWish(split=(1, 1)))
    assert offload == Offload(note="`--tensor-split` has 2 numbers for 1 device")


def test_a_number_of_layers_is_taken_at_its_word() -> None:
    offload = placed(device(0, 2), wish=DeviceWish(n_layers=4))
    assert (offload.layers, offload.note) == ((4,), "`--gpu-layers 4`")
    assert placed(device(0, 2), wish=DeviceWish(n_layers=2**16)).layers == (11,)
    assert placed(device(0, 0), device(1, 0), wish=DeviceWish(n_layers=2**16)).n_layers == 11


@pytest.mark.parametrize("kind", sorted(set(DeviceKind) - {DeviceKind.DISCRETE}))
def test_other_kinds_of_devices_are_used_when_named(kind: DeviceKind) -> None:
    found = device(3, 24, kind)
    assert placed(found).devices == ()
    assert "used when it is named: `--device Vulkan3`" in placed(found).note
    assert placed(found, wish=DeviceWish(names=("Vulkan3",))).layers == (11,)


def test_named_devices_are_used_in_their_order() -> None:
    found = device(0, 8), device(1, 8), device(2, 8)
    assert placed(*found, wish=DeviceWish(names=("Vulkan2", "Vulkan0"))).devices == ("Vulkan2", "Vulkan0")


def test_a_name_that_no_device_has() -> None:
    offload = placed(device(0, 8), wish=DeviceWish(names=("Vulkan7",)))
    assert offload == Offload(note="there is no device `Vulkan7`; there are: Vulkan0")
    assert placed(wish=DeviceWish(names=("Vulkan7",)), reason="no loader").note == "no loader"


def test_a_device_that_cannot_be_used_is_not() -> None:
    found = device(0, 24, unusable="it has no 16-bit storage")
    assert placed(found) == Offload(note="Vulkan0 cannot be used: it has no 16-bit storage")
    assert placed(found, wish=DeviceWish(names=("Vulkan0",))) == placed(found)
    assert placed(found, device(1, 24)).devices == ("Vulkan1",)


def test_a_gpu_that_another_backend_uses_is_that_ones_where_it_is_named() -> None:
    vulkan = Device(0, "Card", DeviceKind.DISCRETE, "NVIDIA", "", "1.3.0", GB, None, "it is used as CUDA0", gpu="1")
    cuda = replace(vulkan, backend=DeviceBackend.CUDA, unusable="")
    other = replace(vulkan, index=1, unusable="", gpu="2")
    assert named(("Vulkan0",), (), (cuda, vulkan)) == (("CUDA0",), (), ("Vulkan0 is used as CUDA0",))
    assert named(("CUDA0", "Vulkan1", "Vulkan0"), (), (cuda, vulkan, other)).names == ("CUDA0", "Vulkan1")
    broken = replace(cuda, unusable="its driver has CUDA 12.8")
    for devices in ((vulkan, other), (broken, vulkan), (replace(vulkan, gpu=""), replace(cuda, gpu=""))):
        assert named(("Vulkan0", "Vulkan7"), (1, 2), devices) == (("Vulkan0", "Vulkan7"), (1, 2), ())


def test_a_gpu_that_is_named_twice_has_the_shares_of_both_names() -> None:
    vulkan = Device(0, "Card", DeviceKind.DISCRETE, "NVIDIA", "", "1.3.0", GB, None, "it is used as CUDA0", gpu="1")
    cuda = replace(vulkan, backend=DeviceBackend.CUDA, unusable="")
    other = replace(vulkan, index=1, unusable="", gpu="2")
    found = named(("Vulkan0", "Vulkan1", "CUDA0"), (1, 3, 2), (cuda, vulkan, other))
    assert found == (("CUDA0", "Vulkan1"), (3, 3), ("Vulkan0 is used as CUDA0",))
    assert named(("Vulkan0", "CUDA0"), (1, 1, 1), (cuda, vulkan)).split == (1, 1, 1)  # one is another machine's


def test_a_trial_is_only_promised_where_there_will_be_one() -> None:
    iris = Device(0, "Iris", DeviceKind.INTEGRATED, "Intel", "", "1.3.0", GB, None)
    assert unused_reason(iris).endswith("`--device Vulkan0`, or where a trial finds that faster")
    assert unused_reason(iris, "there is no cache folder").endswith(
        "`--device Vulkan0` (no trial finds out whether that is faster: there is no cache folder)"
    )
    assert unused_reason(replace(iris, kind=DeviceKind.CPU), "there is no cache folder").endswith("`--device Vulkan0`")


def test_a_model_of_unknown_layers_stays_on_the_processor() -> None:
    offload = place(DeviceWish(), [device(0, 24)], "", replace(SIZES, n_layers=0))
    assert (offload.devices, bool(offload.note)) == ((), True)


def test_experts_that_stay_leave_room_for_other_layers() -> None:
    sizes = replace(SIZES, experts=GB * 4 // 5, n_cpu_moe=5)
    offload = place(DeviceWish(), [device(0, 9)], "", sizes)
    assert (offload.layers, offload.n_bytes, offload.n_cpu_moe) == ((11,), (9 * GB,), 5)
    assert "`--n-cpu-moe 5`" in offload.note
    # Layers 6 to 9 and the output: none of these is among the first five.
    assert sizes.on_each([5]) == [7 * GB]
    assert sizes.on_each([6, 5]) == [3 * GB, 7 * GB]
    assert place(DeviceWish(), [device(0, 2)], "", sizes).n_cpu_moe == 0


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1), (0, 5), (0.1, 0.1, 0.1), (0, 0), (7, 0, 2, 1)])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 11, 129])
def test_parts_add_up_and_keep_to_the_shares(shares: tuple[float, ...], n_layers: int) -> None:
    parts = divided(n_layers, shares)
    assert sum(parts) == n_layers
    whole = sum(shares) or len(shares)
    for part, share in zip(parts, shares if sum(shares) else [1] * len(shares), strict=True):
        assert abs(part - n_layers * share / whole) <= 1
