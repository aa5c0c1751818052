"""The stand-ins of the frozen file behave like what they stand in for."""

import asyncio
import copy
import dataclasses
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

STAND_INS = Path(__file__).parent.parent / "tools" / "stand_ins"


def stand_in(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", STAND_INS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN = stand_in("dataclasses")


def classes(module: Any) -> SimpleNamespace:
    """The same classes, made by `module`; in all the ways of Shimmy and its packages."""
    dataclass, field = module.dataclass, module.field

    @dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        kind: ClassVar[str] = "point"
        unit: "ClassVar[str]" = "cm"
        names: dict[str, int] = field(default_factory=dict, compare=False)

        def far(self) -> int:
            return abs(self.x) + abs(self.y)

    @dataclass(slots=True)
    class Counter:
        start: int
        value: int = field(init=False, default=0)
        seen: list[Any] = field(init=False, default_factory=list)

        def __post_init__(self) -> None:
            self.value = self.start

    @dataclass
    class Base:
        a: int
        b: "list[Any]" = field(default_factory=list, repr=False)

    @dataclass
    class Derived(Base):
        a: int = 5
        c: str = "c"
        late: int = field(init=False, default=7)

    @dataclass(eq=False)
    class Same:
        a: int

    @dataclass(init=False, frozen=True)
    class Made:
        a: int

        def __init__(self, text: str) -> None:
            object.__setattr__(self, "a", int(text))

    @dataclass(unsafe_hash=True)
    class Event:
        path: str
        kind: str = field(default="moved", init=False)
        other: str = field(default="", hash=False)

    class Moved(Event):
        kind = "very"

    @dataclass(frozen=True)
    class Told:
        a: int

        def __repr__(self) -> str:
            return "told"

        def __hash__(self) -> int:
            return 1

    return SimpleNamespace(**{name: value for name, value in locals().items() if isinstance(value, type)})


def outcome(module: Any, act: Callable[[Any, Any], Any]) -> str:
    """What comes of it, as text."""
    try:
        return repr(act(classes(module), module)).replace(STAND_IN.__name__, "dataclasses")
    except Exception as exc:  # noqa: BLE001 - the other one has to fail in the same way
        return type(exc).__name__


ACTS: dict[str, Callable[[Any, Any], Any]] = {
    "all given": lambda c, _: c.Point(1, 3, {"a": 1}),
    "defaults": lambda c, _: (c.Point(1), c.Derived(), c.Derived(1, [2], "d").b),
    "by name": lambda c, _: (c.Point(y=1, x=2), c.Counter(start=4)),
    "too few": lambda c, _: c.Point(),
    "too many": lambda c, _: c.Counter(1, 2),
    "unknown": lambda c, _: c.Point(1, z=2),
    "a factory for each": lambda c, _: c.Point(1).names is c.Point(1).names,
    "after init": lambda c, _: (c.Counter(4).value, c.Derived(1).late),
    "own init": lambda c, _: c.Made("7"),
    "own methods": lambda c, _: (c.Told(1), hash(c.Told(1)), c.Point(1).far(), c.Point.kind),
    "equal": lambda c, _: (c.Point(1) == c.Point(1), c.Point(1) == c.Point(2), c.Point(1) == c.Derived(1)),
    "not compared": lambda c, _: c.Point(1, 2, {"a": 1}) == c.Point(1, 2, {"b": 1}),
    "equal to itself alone": lambda c, _: (c.Same(1) == c.Same(1), c.Same(1) != c.Same(1)),
    "of a base": lambda c, _: (c.Base(1) == c.Derived(1), c.Event("a") == c.Moved("a")),
    "hash": lambda c, _: (hash(c.Point(1)) == hash(c.Point(1)), len({c.Event("a"), c.Event("a", "b")})),
    "no hash": lambda c, _: hash(c.Counter(1)),
    "no hash of a base": lambda c, _: hash(c.Derived(1)),
    "subclass": lambda c, _: (c.Moved("a").kind, c.Moved("a")),
    "frozen": lambda c, _: setattr(c.Point(1), "x", 2),
    "frozen, no field": lambda c, _: setattr(c.Told(1), "z", 2),
    "frozen, to delete": lambda c, _: delattr(c.Point(1), "x"),
    "no slot": lambda c, _: setattr(c.Counter(1), "z", 2),
    "no dictionary": lambda c, _: (hasattr(c.Point(1), "__dict__"), c.Point.__slots__, hasattr(c.Base(1), "__dict__")),
    "match": lambda c, _: (c.Point.__match_args__, c.Counter.__match_args__, c.Derived.__match_args__),
    "fields": lambda c, m: [(f.name, f.type, f.init, f.compare) for f in m.fields(c.Point(1)) + m.fields(c.Derived)],
    "no fields": lambda _c, m: m.fields(3),
    "is one": lambda c, m: (m.is_dataclass(c.Point), m.is_dataclass(c.Moved("a")), m.is_dataclass(3)),
    "replace": lambda c, m: (m.replace(c.Point(1, 5), x=2), m.replace(c.Made("1"))),
    "replace what is not given": lambda c, m: (m.replace(c.Counter(3), start=4), m.replace(c.Counter(3), value=4)),
    "asdict": lambda c, m: m.asdict(c.Base(c.Point(1), [c.Counter(2), (c.Point(3),), {"k": c.Same(4)}, "text"])),
    "astuple": lambda c, m: m.astuple(c.Base(c.Point(1), [c.Counter(2), (3, 4)])),
    "a copy": lambda c, _: (copy.copy(c.Point(1, 9)), copy.deepcopy(c.Counter(3))),
    "names": lambda c, _: (c.Point.__qualname__, c.Point.__module__, c.Point(1).__class__.__name__),
    "a default that is none": lambda c, _: c.Base.b,
}


@pytest.mark.parametrize("name", ACTS)
def test_dataclasses_is_as_the_real_one(name: str) -> None:
    assert outcome(STAND_IN, ACTS[name]) == outcome(dataclasses, ACTS[name])


def test_a_matched_object_and_the_second_of_a_class() -> None:
    """`__init__` is another one from the second object on."""
    for module in (dataclasses, STAND_IN):
        point = classes(module).Point
        first, second = point(1), point(1)
        assert first == second
        match second:
            case point(x, y):
                assert (x, y) == (1, 2)


def plain() -> None: ...
def generating() -> Iterator[int]:
    yield 1


async def waiting() -> None: ...
async def streaming() -> AsyncIterator[int]:
    yield 1


@types.coroutine
def old_coroutine() -> Iterator[None]:
    yield


class Service:
    async def __call__(self) -> None: ...
    async def method(self) -> None: ...


async def things() -> list[object]:
    """Of every kind that may be asked about; made in a loop, so that none is left unawaited."""
    coroutine = waiting()
    found = [plain, generating, waiting, streaming, old_coroutine, Service, Service(), Service().method, len, 3, None]
    found += [functools.partial(waiting), functools.partial(functools.partial(Service().method)), generating()]
    found += [streaming(), old_coroutine(), coroutine, asyncio.ensure_future(asyncio.sleep(0))]
    await coroutine
    return found


NAMES = [name for name in vars(stand_in("inspect")) if name.startswith("is")]


@pytest.mark.parametrize("name", NAMES)
def test_inspect_answers_as_the_real_one(name: str) -> None:
    ask, ask_the_real_one = getattr(stand_in("inspect"), name), getattr(inspect, name)
    answers = [(ask_the_real_one(thing), ask(thing)) for thing in asyncio.run(things())]
    assert [theirs for theirs, _ in answers] == [ours for _, ours in answers]
    assert {True, False} == {ours for _, ours in answers}


def test_what_was_wrapped() -> None:
    unwrap = stand_in("inspect").unwrap
    assert unwrap(functools.wraps(plain)(lambda: None)) is plain
    circle = functools.wraps(plain)(lambda: None)
    circle.__wrapped__ = circle
    with pytest.raises(ValueError, match="wrapper loop"):
        unwrap(circle)


def test_all_else_of_inspect_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_in_full", inspect)
    assert stand_in("inspect").getattr_static is inspect.getattr_static
    assert not hasattr(stand_in("inspect"), "of_no_module")
