"""Stands in for `dataclasses` in the frozen file. The real one writes six methods for each class and compiles them when
the class is made, which was a third of every start. Here classes share their methods, and only `__init__`, which has to
be fast, is compiled: when the first object is made.

What Shimmy and its packages use is as in the real one; other options do not exist here. `repr` knows no recursion, and
`asdict` copies containers, not what is in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FIELDS = "__dataclass_fields__"
MISSING: Any = type("MISSING", (), {})()


class FrozenInstanceError(AttributeError):
    """Somebody assigned to a field of a frozen object."""


class Field:
    """What a class says of one of its attributes."""

    __slots__ = ("compare", "default", "default_factory", "hash", "init", "name", "repr", "type")

    def __init__(
        self, default: Any, factory: Any, *, init: bool, shown: bool, hashed: bool | None, compare: bool
    ) -> None:
        self.name = ""
        self.type: Any = None
        self.default = default
        self.default_factory = factory
        self.init = init
        self.repr = shown
        self.hash = compare if hashed is None else hashed
        self.compare = compare


def field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    init: bool = True,
    repr: bool = True,  # noqa: A002
    hash: bool | None = None,  # noqa: A002
    compare: bool = True,
) -> Any:
    return Field(default, default_factory, init=init, shown=repr, hashed=hash, compare=compare)


def dataclass(cls: type | None = None, /, **options: bool) -> Any:
    return (lambda cls: _made(cls, **options)) if cls is None else _made(cls)


def fields(of: Any) -> tuple[Field, ...]:
    """Of a class or an object; TypeError when it is none of a dataclass."""
    try:
        return tuple(getattr(of, _FIELDS).values())
    except AttributeError:
        raise TypeError("must be called with a dataclass type or instance") from None


def is_dataclass(of: Any) -> bool:
    return hasattr(of if isinstance(of, type) else type(of), _FIELDS)


def replace(of: Any, /, **changes: Any) -> Any:
    for f in fields(of):
        if not f.init:
            if f.name in changes:
                raise ValueError(f"field {f.name} is declared with init=False, it cannot be specified with replace()")
        elif f.name not in changes:
            changes[f.name] = getattr(of, f.name)
    return type(of)(**changes)


def asdict(of: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(of, f.name), asdict) for f in fields(of)}


def astuple(of: Any) -> tuple[Any, ...]:
    return tuple(_plain(getattr(of, f.name), astuple) for f in fields(of))


def _plain(value: Any, convert: Callable[[Any], Any]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return convert(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_plain(item, convert) for item in value])
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, convert) for item in value)
    if isinstance(value, dict):
        return type(value)((_plain(key, convert), _plain(item, convert)) for key, item in value.items())
    return value


# -- making a class --------------------------------------------------------------------------------------------------


def _made(
    cls: Any,
    *,
    init: bool = True,
    repr: bool = True,  # noqa: A002
    eq: bool = True,
    unsafe_hash: bool = False,
    frozen: bool = False,
    slots: bool = False,
) -> Any:
    has_own_hash = cls.__dict__.get("__hash__", MISSING) not in (MISSING, None)
    inherited = {name: known for base in cls.__mro__[:0:-1] for name, known in base.__dict__.get(_FIELDS, {}).items()}
    own = {known.name: known for known in _own_fields(cls)}
    setattr(cls, _FIELDS, inherited | own)
    known_fields = fields(cls)
    methods: dict[str, Any] = {}
    if repr:
        methods["__repr__"] = _repr
    if eq:
        methods["__eq__"] = _eq
    if unsafe_hash or (eq and frozen):
        methods["__hash__"] = _hash
    elif eq and not has_own_hash:
        cls.__hash__ = None
    if frozen:
        methods |= {"__setattr__": _refuse_setattr, "__delattr__": _refuse_delattr}
    methods["__match_args__"] = tuple(f.name for f in known_fields if f.init)
    for name, method in methods.items():
        if name not in cls.__dict__ or (name == "__hash__" and not has_own_hash):
            setattr(cls, name, method)
    has_own_init = "__init__" in cls.__dict__
    if slots:
        cls = _with_slots(cls, list(own), frozen)
    if init and not has_own_init:
        cls.__init__ = _init_made_at_first_use(cls, known_fields, frozen, slots)
    return cls


def _own_fields(cls: Any) -> Iterator[Field]:
    for name, kind in cls.__annotations__.items():  # its own: classes inherit none
        text = kind if isinstance(kind, str) else ""
        if getattr(kind, "__origin__", kind) is ClassVar or text.startswith(("ClassVar", "typing.ClassVar")):
            continue
        given = cls.__dict__.get(name, MISSING)
        known = given if isinstance(given, Field) else field(default=given)
        known.name, known.type = name, kind
        if known.default is not MISSING:
            setattr(cls, name, known.default)
        elif isinstance(given, Field):
            delattr(cls, name)
        yield known


def _with_slots(cls: Any, own: list[str], frozen: bool) -> Any:
    """The class anew: slots cannot be added to one that is there."""
    taken = {name for base in cls.__mro__[1:] for name in _slots_of(base)}
    body = {name: value for name, value in cls.__dict__.items() if name not in (*own, "__dict__", "__weakref__")}
    body["__slots__"] = tuple(name for name in cls.__dataclass_fields__ if name not in taken)
    if frozen:
        body = {"__getstate__": _getstate, "__setstate__": _setstate} | body
    anew = type(cls)(cls.__name__, cls.__bases__, body)
    anew.__qualname__ = cls.__qualname__
    return anew


def _slots_of(base: Any) -> tuple[str, ...]:
    slots = base.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _init_made_at_first_use(
    cls: Any, known_fields: tuple[Field, ...], frozen: bool, slots: bool
) -> Callable[..., None]:
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:  # noqa: N807
        cls.__init__ = compiled = _compiled_init(cls, known_fields, frozen, slots)
        compiled(self, *arguments, **named)

    return __init__


def _compiled_init(cls: Any, known_fields: tuple[Field, ...], frozen: bool, slots: bool) -> Callable[..., None]:
    parameters, body = ["self"], []
    names: dict[str, Any] = {"_missing": MISSING, "_set": object.__setattr__}
    for f in known_fields:
        value = f.name
        if f.default_factory is not MISSING:
            names[f"_make_{f.name}"] = f.default_factory
            value = f"_make_{f.name}()"
            if f.init:
                parameters.append(f"{f.name}=_missing")
                value = f"{value} if {f.name} is _missing else {f.name}"
        elif f.default is not MISSING:
            names[f"_default_{f.name}"] = f.default
            if f.init:
                parameters.append(f"{f.name}=_default_{f.name}")
            elif slots:
                value = f"_default_{f.name}"
            else:
                continue  # the class has it
        elif f.init:
            parameters.append(f.name)
        else:
            continue  # somebody else will set it
        body.append(f" _set(self, {f.name!r}, {value})" if frozen else f" self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or [" pass"]), names)
    compiled = names["__init__"]
    compiled.__qualname__ = f"{cls.__qualname__}.__init__"
    return compiled  # type: ignore[no-any-return]


# -- the methods that all classes share ------------------------------------------------------------------------------


def _repr(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> bool:
    if type(self) is not type(other):
        return NotImplemented
    compared = [f.name for f in fields(self) if f.compare]
    return [getattr(self, name) for name in compared] == [getattr(other, name) for name in compared]


def _hash(self: Any) -> int:
    return hash(tuple([getattr(self, f.name) for f in fields(self) if f.hash]))


def _refuse_setattr(self: Any, name: str, value: Any) -> None:
    if _FIELDS in type(self).__dict__ or name in getattr(self, _FIELDS):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _refuse_delattr(self: Any, name: str) -> None:
    if _FIELDS in type(self).__dict__ or name in getattr(self, _FIELDS):
        raise FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for f, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)
