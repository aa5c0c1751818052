"""Jinja as Hugging Face's chat templates rely on it, for templates that may be hostile. The only importer of jinja2.

A template comes with the model file. It reaches the filters, methods and globals listed here and nothing else. Each
value that it makes is metered (`render_meter`): before it is made, wherever it can be much larger than its parts. As no
value gets large, no single step takes long, and `template` can end an endless render between two steps.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial, wraps
from sys import getsizeof
from types import BuiltinMethodType
from typing import Any, TypeVar

from jinja2 import TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Joiner, Namespace
from markupsafe import escape

from shimmy.engine.chat.render_meter import MAX_VALUE_BYTES, RenderMeter, weight_bytes
from shimmy.errors import TemplateFailed

MAX_SOURCE_CHARACTERS = 256 * 1024  # the largest templates in use have about 17,000
MAX_INTEGER_BITS = 4096
MAX_WIDTH = 999  # of numbers in formats and of indents
MAX_FORMAT_CHARACTERS = 64 * 1024  # of the formats themselves
MAX_SEARCH_STEPS = 10**8  # of the searches that are quadratic in CPython; about a tenth of a second
PIECE_BYTES = 64  # a short string and the reference to it

_FILTERS = (  # noqa: SIM905 - one name a line would fill a page
    "abs attr count d default dictsort first float groupby int items last length list map max min"
    " reject rejectattr reverse select selectattr sort string truncate unique"
).split()
_STRING_METHODS = (  # noqa: SIM905
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower"
    " isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix startswith swapcase title"
    " upper"
).split()
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STRING_METHODS)),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (list, frozenset(("copy", "count", "index"))),
    (tuple, frozenset(("count", "grouper", "index", "list"))),  # `grouper` and `list` belong to the filter `groupby`
)
# Possessive throughout: it never goes back to what it has taken, so it takes each character once.
_PERCENT_FORMAT = re.compile(r"(?:[^%]++|%(?:\(\w*+\))?+[-+ #0]*+\d{0,3}+(?:\.\d{0,3}+)?+[hlL]?+[diouxXeEfFgGcrsa%])*+")
_WIDE = re.compile(r"\d{4}")

Value = TypeVar("Value")


def compile_template(source: str) -> Callable[[dict[str, Any]], str]:
    """A function from variables to text. Both raise TemplateFailed and nothing else, and may run without end."""
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise TemplateFailed(f"the chat template has more than {MAX_SOURCE_CHARACTERS} characters")
    sandbox = _Sandbox()
    try:
        template = sandbox.from_string(source)
    except TemplateSyntaxError as exc:
        raise TemplateFailed(f"the chat template does not compile: {exc.message} (line {exc.lineno})") from exc
    except Exception as exc:
        raise TemplateFailed(f"the chat template does not compile: {exc}") from exc

    def render(variables: dict[str, Any]) -> str:
        try:
            return sandbox.concat(map(sandbox.metered, template.generate(variables)))
        except TemplateFailed:
            raise
        except Exception as exc:
            reason = str(exc)[:500] or type(exc).__name__
            raise TemplateFailed(f"the chat template failed: {reason}", param="messages") from exc

    return render


class _Compiler(CodeGenerator):
    """Sends through the sandbox what a template's syntax makes without a function, a filter or an operator."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        check = None
        if isinstance(node, nodes.Concat):
            node, check = nodes.Tuple(node.nodes, "load"), "concatenated"
        elif isinstance(node, nodes.List) or (isinstance(node, nodes.Const) and isinstance(node.value, list)):
            check = "own"
        elif isinstance(node, nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            check = "checked"
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            check = "metered"
        if check is not None:
            self.write(f"environment.{check}(")
        super().visit(node, *args, **kwargs)
        if check is not None:
            self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Prints no attributes: two namespaces that hold each other twice would print without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _OwnList(list[Any]):
    """A list that the template has written, and may change."""


class _Formatter(SandboxedFormatter):
    """`str.format` whose every field is metered."""

    def __init__(self, sandbox: "_Sandbox") -> None:
        super().__init__(sandbox)
        self._sandbox = sandbox

    def format_field(self, value: Any, format_spec: str) -> str:
        if len(format_spec) > MAX_WIDTH or _WIDE.search(format_spec):
            raise TemplateFailed(f"the chat template formats a value wider than {MAX_WIDTH} characters")
        self._sandbox.printable(value)
        return self._sandbox.metered(format(value, format_spec))


def _raise_exception(message: object) -> None:
    raise TemplateFailed(f"the chat template refused the messages: {str(message)[:500]}", param="messages")


def _strftime_now(format: str) -> str:  # noqa: A002 - its name in Hugging Face's function
    return datetime.now().astimezone().strftime(format[:MAX_WIDTH])


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. Its public methods are what the compiled template calls."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        self._meter = RenderMeter()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
            finalize=self.printable,
        )
        self.globals = {
            "dict": self._dict,
            "joiner": Joiner,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": safe_range,
            "strftime_now": _strftime_now,
        }
        self.filters = {name: self._checked_filter(FILTERS[name]) for name in _FILTERS} | {
            "capitalize": lambda value: self._cased(str.capitalize, str(self.printable(value))),
            "center": lambda value, width=80: self._padded(str.center, str(value), width),
            "e": self._escaped,
            "escape": self._escaped,
            "format": lambda value, *args, **kwargs: self._percent(str(value), kwargs or args),
            "indent": self._indented,
            "join": self._join,
            "lower": lambda value: self._cased(str.lower, str(self.printable(value))),
            "replace": lambda value, old, new, count=-1: self._replaced(str(value), str(old), str(new), count),
            "round": self._rounded,
            "safe": lambda value: str(self.printable(value)),
            "sum": self._sum,
            "title": self._titled,
            "tojson": self._tojson,
            "fromjson": self._fromjson,
            "from_json": self._fromjson,
            "upper": lambda value: self._cased(str.upper, str(self.printable(value))),
            "trim": lambda value, chars=None: self._searched(str.strip, str(value), chars),
        }
        # Methods of `str` whose result, or whose work, can be much larger than the text.
        self._bounded: dict[str, Callable[..., Any]] = {
            "expandtabs": lambda text, tabsize=8: self._padded(str.expandtabs, text, tabsize, n_times=text.count("\t")),
            "format": lambda text, *args, **kwargs: _Formatter(self).vformat(text, args, kwargs),
            "format_map": lambda text, mapping: _Formatter(self).vformat(text, (), mapping),
            "join": lambda text, items: self._joined(text, list(items)),
            "replace": self._replaced,
        }
        for case in ("capitalize", "casefold", "lower", "swapcase", "title", "upper"):
            self._bounded[case] = partial(self._cased, getattr(str, case))
        for pad in ("center", "ljust", "rjust", "zfill"):
            self._bounded[pad] = partial(self._padded, getattr(str, pad))
        for search in ("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"):
            self._bounded[search] = partial(self._searched, getattr(str, search))
        for split in ("split", "rsplit", "splitlines"):
            self._bounded[split] = partial(self._split, getattr(str, split))

    # What may be reached

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS:
            if isinstance(obj, kind):
                return attr in names
        known = isinstance(obj, LoopContext | Namespace | Macro | Joiner | TemplateReference)
        return known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Replaces a bound method of a string by its bounded form, wherever a template gets hold of it."""
        if isinstance(value, BuiltinMethodType) and isinstance(value.__self__, _OwnList):
            methods: dict[str, Callable[..., Any]] = {"append": self._append, "pop": self._pop}
            changing = methods.get(value.__name__)
            return None if changing is None else partial(changing, value.__self__)
        if isinstance(value, BuiltinMethodType) and isinstance(value.__self__, str):
            bounded = self._bounded.get(value.__name__)
            return None if bounded is None else partial(bounded, value.__self__)
        return None

    def own(self, value: list[Any]) -> "_OwnList":
        """A list that the template has written."""
        return _OwnList(self.checked(value))

    def _append(self, items: list[Any], value: Any) -> None:
        """Lists of texts and numbers may grow (Kimi K2 keeps ids in one); a list in itself would have no end."""
        if not isinstance(value, str | int | float | None):
            raise TemplateFailed("the chat template appends to a list what is neither a text nor a number")
        self._meter.spend(getsizeof(value))
        items.append(value)

    def _pop(self, items: list[Any], place: int = -1) -> Any:
        return items.pop(place)

    # What may be made

    def metered(self, value: Value) -> Value:
        self._meter.spend(getsizeof(value))
        return value

    def checked(self, value: Value) -> Value:
        """`value`, metered; a container is small enough to be printed or compared at any later time."""
        if isinstance(value, list | tuple | dict) and weight_bytes(value) > MAX_VALUE_BYTES:
            self._meter.spend(MAX_VALUE_BYTES + 1)
        return self.metered(value)

    def printable(self, value: Value) -> Value:
        self._meter.spend(getsizeof(value) if type(value) is str else weight_bytes(value))
        return value

    def concatenated(self, values: Iterable[object]) -> str:
        return self.concat([str(self.printable(value)) for value in values])

    def concat(self, pieces: Iterable[str]) -> str:
        return self._joined("", list(pieces))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, Macro) and (obj.catch_varargs or obj.catch_kwargs):
            self.checked([*args, {name: kwargs[name] for name in kwargs.keys() - {"_loop_vars", "_block_vars"}}])
        result = super().call(context, obj, *args, **kwargs)
        return self.metered(result) if isinstance(result, str) else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - jinja2's
        if operator == "+" and type(left) is str and type(right) is str:
            return self.metered(left + right)
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        self._refuse_large_integers(operator, left, right)
        if operator == "*":
            self._spend_repeats(left, right)
            self._spend_repeats(right, left)
        return self.checked(self.binop_table[operator](left, right))

    def _refuse_large_integers(self, operator: str, left: Any, right: Any) -> None:
        n_bits = max(number.bit_length() if isinstance(number, int) else 0 for number in (left, right))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            n_bits = left.bit_length() * abs(right)
        if n_bits > MAX_INTEGER_BITS:
            raise TemplateFailed(f"the chat template makes a number of more than {MAX_INTEGER_BITS} bits")

    def _spend_repeats(self, value: Any, n_times: Any) -> None:
        if isinstance(n_times, int) and isinstance(value, str | list | tuple):
            self._meter.spend(weight_bytes(value) * max(0, n_times))

    def _checked_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps jinja2's mark of a filter that wants the environment first
        def checked(*args: Any, **kwargs: Any) -> Any:
            return self.checked(function(*args, **kwargs))

        return checked

    def _dict(self, items: Any = (), /, **kwargs: Any) -> dict[Any, Any]:
        pairs = items.items() if isinstance(items, Mapping) else items
        # In steps of Python: keys that all have the same hash would keep `dict(pairs)` busy for minutes.
        return self.checked({**{key: value for key, value in pairs}, **kwargs})  # noqa: C416

    def _joined(self, separator: str, pieces: list[str]) -> str:
        self._meter.spend(sum(map(getsizeof, pieces)) + len(pieces) * getsizeof(separator))
        return separator.join(pieces)

    def _join(self, values: Iterable[Any], d: object = "", attribute: str | int | None = None) -> str:
        chosen = values if attribute is None else map(make_attrgetter(self, attribute), values)
        return self._joined(str(d), [str(self.printable(value)) for value in chosen])

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        for value in values if attribute is None else map(make_attrgetter(self, attribute), values):
            self._refuse_large_integers("+", start, value)
            start = self.checked(start + value)
        return start

    def _padded(self, method: Callable[..., str], text: str, width: int, *fill: str, n_times: int = 1) -> str:
        self._meter.spend(getsizeof(text) + 4 * max(0, width) * n_times)
        return method(text, width, *fill)

    def _cased(self, method: Callable[[str], str], text: str) -> str:
        self._meter.spend(4 * getsizeof(text))  # it takes four times as long as a copy, and may be as much longer
        return method(text)

    def _searched(self, method: Callable[..., Any], text: str, *args: Any) -> Any:
        if args and isinstance(args[0], str) and len(text) * len(args[0]) > MAX_SEARCH_STEPS:
            raise TemplateFailed("the chat template searches too large a text")
        return method(text, *args)

    def _split(self, method: Callable[..., list[str]], text: str, *args: Any, **kwargs: Any) -> list[str]:
        separator = args[0] if args else kwargs.get("sep")
        if isinstance(separator, str) and separator:
            self._searched(str.rfind, text, separator)  # what `rsplit` does
            n_pieces = text.count(separator) + 1
        else:
            n_pieces = len(text) // 2 + 1
        self._meter.spend(getsizeof(text) + n_pieces * PIECE_BYTES)
        return method(text, *args, **kwargs)

    def _replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        n_times = text.count(old) if count < 0 else min(count, text.count(old))
        self._meter.spend(getsizeof(text) + n_times * getsizeof(new))
        return text.replace(old, new, count)

    def _indented(self, value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(self.printable(value))
        indent = width if isinstance(width, str) else " " * min(width, MAX_WIDTH + 1)
        if len(indent) > MAX_WIDTH:
            raise TemplateFailed(f"the chat template indents by more than {MAX_WIDTH} characters")
        self._meter.spend(len(self._split(str.splitlines, text)) * getsizeof(indent))
        return self.metered(str(FILTERS["indent"](text, indent, first, blank)))

    def _titled(self, value: object) -> str:
        text = str(self.printable(value))
        self._meter.spend(len(text) * PIECE_BYTES)
        return str(FILTERS["title"](text))

    def _escaped(self, value: object) -> str:
        text = str(self.printable(value))
        self._meter.spend(5 * len(text))
        return str(escape(text))

    def _rounded(self, value: float, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > MAX_WIDTH:
            raise TemplateFailed(f"the chat template rounds to more than {MAX_WIDTH} digits")
        return FILTERS["round"](value, precision, method)

    def _percent(self, text: str, values: Any) -> str:
        if len(text) > MAX_FORMAT_CHARACTERS or _PERCENT_FORMAT.fullmatch(text) is None:
            raise TemplateFailed(f"the chat template has a bad format, or one wider than {MAX_WIDTH} characters")
        self._meter.spend(getsizeof(text) + text.count("%") * (weight_bytes(values) + 4 * MAX_WIDTH))
        return str(text % values)

    def _fromjson(self, value: Any) -> Any:
        """What JSON text says; anything else stays what it is. Some templates read the arguments of calls with it."""
        if not isinstance(value, str):
            return value
        self._meter.spend(16 * len(value))  # what is made of `[[],[],[],…`
        return self.checked(json.loads(value))

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as Hugging Face writes it: characters as they are, no HTML escapes, keys in their own order."""
        self.printable(value)
        if isinstance(indent, int) and indent > MAX_WIDTH:
            raise TemplateFailed(f"the chat template indents by more than {MAX_WIDTH} characters")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None and separators is None:
            return self.metered(encoder.encode(value))
        return self.concat(map(self.metered, encoder.iterencode(value)))
