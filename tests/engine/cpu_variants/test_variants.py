from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.cpu_variants.variants import ARCHIVE_NAME, VARIANTS, libraries, processor_flags, ranked
from shimmy.errors import ModelUnavailable
from tools import variants as packing

ARM = frozenset(name for name, _ in VARIANTS if name.startswith("armv"))
X86 = frozenset(name for name, _ in VARIANTS) - ARM

# The telling part of the `flags` line of /proc/cpuinfo, each beside what everything before it has.
CORE_2 = "fpu mmx sse sse2 ssse3 cx16"
CELERON_N4000 = CORE_2 + " sse4_1 sse4_2 popcnt aes"
SANDY_BRIDGE = CELERON_N4000 + " avx"
IVY_BRIDGE = SANDY_BRIDGE + " f16c"
FX_8350 = IVY_BRIDGE + " fma fma4 xop"
HASWELL = IVY_BRIDGE + " fma avx2 bmi1 bmi2"
ALDER_LAKE = HASWELL + " avx_vnni vaes"
SKYLAKE_X = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = SKYLAKE_X + " avx512vbmi avx512_vnni avx512_vbmi2"
ZEN_4 = ICE_LAKE + " avx512_bf16"
SAPPHIRE_RAPIDS = ZEN_4 + " avx_vnni amx_bf16 amx_tile amx_int8 avx512_fp16"
PI_3 = "fp asimd evtstrm crc32 cpuid"
PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON_4 = PI_5 + " sve i8mm bf16 sve2 svei8mm"


def flags(text: str) -> frozenset[str]:
    return frozenset(text.split())


@pytest.mark.parametrize(
    ("processor", "names"),
    [
        (CORE_2, "x64"),
        (CELERON_N4000, "sse42 x64"),
        (SANDY_BRIDGE, "sandybridge sse42 x64"),
        (IVY_BRIDGE, "ivybridge sandybridge sse42 x64"),
        (FX_8350, "piledriver ivybridge sandybridge sse42 x64"),
        (HASWELL, "haswell piledriver ivybridge sandybridge sse42 x64"),
        (ALDER_LAKE, "alderlake haswell piledriver ivybridge sandybridge sse42 x64"),
        (SKYLAKE_X, "skylakex haswell piledriver ivybridge sandybridge sse42 x64"),
        (ICE_LAKE, "icelake cascadelake cannonlake skylakex haswell piledriver ivybridge sandybridge sse42 x64"),
    ],
)
def test_an_x86_processor_gets_what_it_can_run_best_first(processor: str, names: str) -> None:
    assert ranked(X86, flags(processor)) == names.split()


@pytest.mark.parametrize(
    ("processor", "best"), [(ZEN_4, ["zen4", "cooperlake", "icelake"]), (SAPPHIRE_RAPIDS, ["sapphirerapids", "zen4"])]
)
def test_the_largest_processors(processor: str, best: list[str]) -> None:
    names = ranked(X86, flags(processor))
    assert names[: len(best)] == best
    assert len(names) >= 12


@pytest.mark.parametrize(
    ("processor", "names"),
    [
        (PI_3, "armv8.0_1"),
        (PI_5, "armv8.2_2 armv8.2_1 armv8.0_1"),
        (GRAVITON_4, "armv8.6_2 armv8.6_1 armv8.2_3 armv8.2_2 armv8.2_1 armv8.0_1"),
    ],
)
def test_an_arm_processor_gets_what_it_can_run_best_first(processor: str, names: str) -> None:
    assert ranked(ARM, flags(processor)) == names.split()


def test_only_what_is_there_is_ranked() -> None:
    assert ranked(frozenset({"sse42", "haswell", "unheard-of"}), flags(ZEN_4)) == ["haswell", "sse42"]


def test_where_the_system_tells_nothing_everything_is_worth_a_try() -> None:
    assert ranked(X86, None)[0] == "sapphirerapids"
    assert set(ranked(X86, None)) == X86


# -- what the system tells -------------------------------------------------------------------------------------------


def test_the_flags_of_the_first_processor_count(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags(cpuinfo) == frozenset({"fpu", "avx2"})


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({"hwcap": 0xFF}, "armv8.0_1"),  # a Raspberry Pi 4
        ({"hwcap": 0x119FFF & ~(1 << 10)}, "armv8.2_1"),
        ({"hwcap": 0x119FFF}, "armv8.2_2"),  # a Raspberry Pi 5
        ({"hwcap": 0x519FFF}, "armv8.2_3"),
        ({"hwcap": 0x519FFF, "hwcap2": 1 << 13 | 1 << 14}, "armv8.6_1"),  # Graviton 3
        ({"hwcap": 0x519FFF, "hwcap2": 1 << 13 | 1 << 1}, "armv8.6_2"),  # Graviton 4
        ({"hwcap": 0x519FFF, "hwcap2": 1 << 13 | 1 << 1 | 1 << 23}, "armv9.2_2"),
    ],
)
def test_the_kernel_is_asked_on_arm(tmp_path: Path, values: dict[str, int], best: str) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd sve sve2 sme i8mm asimddp asimdhp\n")
    words = {16: values.get("hwcap", 0), 26: values.get("hwcap2", 0)}  # AT_HWCAP and AT_HWCAP2
    assert ranked(ARM, processor_flags(tmp_path / "cpuinfo", words.__getitem__))[0] == best


def test_a_system_that_tells_no_flags(tmp_path: Path) -> None:
    assert processor_flags(tmp_path / "missing") is None
    (tmp_path / "empty").write_text("processor : 0\n")
    assert processor_flags(tmp_path / "empty") is None


# -- the libraries ---------------------------------------------------------------------------------------------------

LIBRARIES = {name: f"the library of {name}".encode() * 10 for name in X86}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as an installed engine has it."""
    for name in ("sse42", "haswell", "zen4", "x64"):
        (tmp_path / f"libggml-cpu-{name}.so").write_bytes(LIBRARIES[name])
    (tmp_path / "libllama.so").touch()
    return tmp_path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder as the frozen file has it, made by the build's own code."""
    (tmp_path / ARCHIVE_NAME).write_bytes(packing.pack(LIBRARIES))
    return tmp_path


@pytest.fixture
def on_haswell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "processor_flags", lambda: flags(HASWELL))


@pytest.mark.usefixtures("on_haswell")
def test_installed_libraries_are_named_by_their_paths(installed: Path) -> None:
    expected = [(name, str(installed / f"libggml-cpu-{name}.so")) for name in ("haswell", "sse42", "x64")]
    assert list(libraries(installed, None)) == expected


@pytest.mark.usefixtures("on_haswell")
def test_packed_libraries_are_unpacked_one_at_a_time(packed: Path) -> None:
    names = []
    for name, path in libraries(packed, None):
        assert Path(path).read_bytes() == LIBRARIES[name]
        names.append(name)
        assert len([*packed.iterdir()]) == 1 + len(names)
    assert names == ["haswell", "piledriver", "ivybridge", "sandybridge", "sse42", "x64"]


@pytest.mark.usefixtures("on_haswell")
@pytest.mark.parametrize("where", ["index", "stream", "end"])
def test_a_damaged_archive_is_told(packed: Path, where: str) -> None:
    archive = packed / ARCHIVE_NAME
    data = bytearray(archive.read_bytes())
    start = data.index(b"\n") + 1
    match where:
        case "index":
            data[0] = 0
        case "stream":
            data[start:] = bytes(len(data) - start)
        case _:
            del data[start + 20 :]
    archive.write_bytes(data)
    with pytest.raises(ModelUnavailable, match="the program's own file is damaged: fetch it again"):
        next(libraries(packed, None))


@pytest.mark.usefixtures("on_haswell")
def test_a_library_is_unpacked_once(packed: Path) -> None:
    first, _ = next(libraries(packed, None)), (packed / "libggml-cpu-haswell.so").write_bytes(b"as it was left")
    assert next(libraries(packed, None)) == first
    assert Path(first[1]).read_bytes() == b"as it was left"


@pytest.mark.usefixtures("on_haswell")
@pytest.mark.parametrize("folder", ["installed", "packed"])
def test_a_forced_variant_is_the_only_one_tried(folder: str, request: pytest.FixtureRequest) -> None:
    for name in ("sse42", "zen4"):
        found = [(found, Path(path).read_bytes()) for found, path in libraries(folder_of(request, folder), name)]
        assert found == [(name, LIBRARIES[name])]


@pytest.mark.parametrize("folder", ["installed", "packed"])
def test_a_forced_variant_that_is_not_there_is_refused_with_those_that_are(
    folder: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"no CPU variant `pentium`; there are: .*zen4, .*haswell, .*sse42, x64$"
    ):
        list(libraries(folder_of(request, folder), "pentium"))


def folder_of(request: pytest.FixtureRequest, name: str) -> Path:
    folder = request.getfixturevalue(name)
    assert isinstance(folder, Path)
    return folder


def test_an_empty_folder_has_nothing_to_try(tmp_path: Path) -> None:
    assert list(libraries(tmp_path, None)) == []
