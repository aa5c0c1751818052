"""Request bodies: the decoder for large ones agrees with the standard library's, bounds hold, and nobody waits."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from shimmy.api import body
from shimmy.api.aside import aside
from shimmy.api.body import MAX_DEPTH, MAX_FIELDS, MAX_NUMBER_CHARACTERS, MAX_VALUES, decode, measure
from shimmy.errors import BadRequest
from shimmy.text import json_decoder
from tests.fakes import on_loop
from tests.text.test_json_writer import any_value

MIB = 2**20


@pytest.fixture(params=[5, 37, 200])
def small_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large."""
    monkeypatch.setattr(body, "_STEP", request.param)
    monkeypatch.setattr(json_decoder, "_STEP", request.param)
    monkeypatch.setattr(body, "_PLAIN_VALUES", -1)


def written(value: object, random: Random) -> bytes:
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 1]))
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value).encode()


def damaged(text: bytes, random: Random) -> bytes:
    damaged = bytearray(text)
    for _ in range(random.choice([1, 2])):
        place = random.randrange(len(damaged) + 1)
        wrong = bytes([random.choice(b'"\\,[]{}: x1\0\xff')])
        damaged[place : place + random.choice([0, 1])] = random.choice([b"", wrong])
    return bytes(damaged)


@pytest.mark.usefixtures("small_steps")
def test_large_bodies_mean_what_they_say() -> None:
    random = Random(2)
    for _ in range(300):
        text = written(any_value(random), random)
        assert decode(text) == json.loads(text)


@pytest.mark.usefixtures("small_steps")
def test_large_bodies_are_refused_where_small_ones_are() -> None:
    random = Random(3)
    for _ in range(500):
        text = damaged(written(any_value(random), random), random)
        try:
            value = json.loads(text.decode())
        except ValueError:
            with pytest.raises(BadRequest, match="the body is not"):
                decode(text)
        else:
            assert decode(text) == value


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    "text",
    ["[,1]", "[ ,1]", "[1,]", "[1, ,2]", "[1 2]", '{"a":1,}', '{,"a":1}', '{ ,"a":1}', "[1}", "[1]]", "", " ", "[",
     '"a', '"\\', '["\\ud83d\\u00"]', "[NaN]", "[01,2]", '{"a":1 "b":2}', '{1:2,"a":3}'],
)  # fmt: skip
def test_no_kind_of_broken_json_passes(text: str) -> None:
    with pytest.raises(BadRequest, match="the body is not valid JSON"):
        decode(text.encode())


@pytest.mark.usefixtures("small_steps")
def test_the_last_of_equal_keys_counts_in_a_large_body_too() -> None:
    assert decode(b'{"a":1,"b":[[2]],"a":[[3]],"":4,"":5,"b":6}') == {"a": [[3]], "b": 6, "": 5}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-le", "\ufeff"), ("utf-32-be", "\ufeff"), ("utf-8", "\ufeff")])
def test_a_large_body_may_begin_with_a_byte_order_mark(encoding: str, mark: str) -> None:
    value = {"a": ["é😀" * 100, "\\" * 99]}
    assert decode((mark + json.dumps(value, ensure_ascii=False)).encode(encoding)) == value


def test_the_place_of_a_wrong_byte_is_told() -> None:
    for n_before in (10, body._STEP - 1, body._STEP, 3 * body._STEP + 7):
        with pytest.raises(BadRequest, match=f"not UTF-8 text: byte {n_before + 1} is wrong"):
            decode(b'"' + b"x" * n_before + b'\xff"')


def test_a_text_that_python_has_no_narrow_form_for_is_bounded() -> None:
    wide = b'"' + b"x" * json_decoder.MAX_CHARACTERS
    assert len(decode(wide + b'"')) == json_decoder.MAX_CHARACTERS
    assert len(decode(wide + b'xxx"')) == json_decoder.MAX_CHARACTERS + 3
    with pytest.raises(BadRequest, match="a text of more than 8388608 characters that are not all ASCII"):
        decode(wide + '😀"'.encode())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'[{"a":' * MAX_DEPTH + b"1" + b"}]" * MAX_DEPTH, "nested too deeply"),
        (b'"\\\\",' + b"[" * 1000, "nested too deeply"),
        (b"[" + b"{}," * MAX_FIELDS + b"1]", f"more than {MAX_FIELDS} fields"),
        (b'{"a":1' + b',"a":1' * MAX_FIELDS + b"}", f"more than {MAX_FIELDS} fields"),
        (b"[1" + b",1" * (MAX_VALUES + 1) + b"]", f"more than {MAX_VALUES} values"),
        (b"[1." + b"1" * 10 * MIB + b"]", f"a number of more than {MAX_NUMBER_CHARACTERS} characters"),
        (b"[-" + b"1" * MAX_NUMBER_CHARACTERS + b"]", f"a number of more than {MAX_NUMBER_CHARACTERS} characters"),
    ],
    ids=["arrays", "both", "behind-a-string", "objects", "members", "values", "digits", "integer"],
)
def test_what_is_too_much_is_refused_before_it_is_decoded(text: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        measure(text)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b'["' + b"[{,:1" * MIB + b'"]',
        b'["\\"' + b"[{,:" * MIB + b'\\\\\\"[[[["]',
        b'["' + b"\\\\" * (body._STEP // 2) + b'","[[[["]',
        b"[" + b"1" * MAX_NUMBER_CHARACTERS + b"," + b'"' + b"1" * 1000 + b'"]',
    ],
    ids=["deep", "string", "escaped", "backslashes", "digits"],
)
def test_what_stands_in_strings_counts_for_nothing(text: bytes) -> None:
    assert measure(text).n_values <= MAX_DEPTH
    assert decode(text) == json.loads(text)


SIZE = 16 * MIB
# Bodies of the largest size, each hard for the decoder in C in a way of its own.
ODD_BODIES: dict[str, Callable[[], bytes]] = {
    "unicode escapes": lambda: b'{"a":"' + b"\\u00e9" * (SIZE // 6 - 9) + b'"}',
    "surrogates": lambda: b'{"a":"' + b"\\ud83d\\ude00" * (SIZE // 12 - 9) + b'"}',
    "escapes": lambda: b'{"a":"' + b"\\n" * (SIZE // 2 - 9) + b'"}',
    "quotes": lambda: b'{"a":"' + b'\\"' * (SIZE // 2 - 9) + b'"}',
    "long name": lambda: b'{"' + b"\\n" * (SIZE // 2 - 9) + b'":1}',
    "emoji": lambda: b'{"a":"' + "😀".encode() * (SIZE // 4 - 9) + b'"}',
    "token ids": lambda: b'{"a":[' + b"12345," * (SIZE // 6 - 9) + b"1]}",
    "arrays of token ids": lambda: b'{"a":[' + (b"[" + b"12345," * 8000 + b"1],") * (SIZE // 48_010) + b"1]}",
    "long integers": lambda: b'{"a":[' + (b"9" * MAX_NUMBER_CHARACTERS + b",") * (SIZE // 401 - 9) + b"1]}",
    "texts": lambda: b'{"a":[' + b'"ab",' * (SIZE // 5 - 9) + b"1]}",
    "objects": lambda: b'{"a":[' + b'{"a":1},' * (MAX_FIELDS // 2 - 9) + b"1]}",
    "names": lambda: b'{"a":1' + b"".join(b',"%d":1' % number for number in range(MAX_FIELDS - 9)) + b"}",
    "space": lambda: b'{"a":' + b" " * (SIZE - 9) + b"1}",
    "wrong at the end": lambda: b'{"a":"' + b"x" * (SIZE - 9) + b'\xff"}',
    "deep": lambda: b'{"a":' + b"[" * SIZE + b"}",
}


@pytest.mark.parametrize("name", ODD_BODIES)
def test_no_call_of_c_keeps_the_lock_for_long_while_the_oddest_bodies_are_decoded(name: str) -> None:
    text = ODD_BODIES[name]()
    begun_s = longest_s = 0.0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal begun_s, longest_s
        if event == "c_call":
            begun_s = time.thread_time()
        elif event != "call":
            longest_s = max(longest_s, time.thread_time() - begun_s if event.startswith("c_") else 0.0)

    sys.setprofile(profile)
    try:
        decode_or_refuse(text)
    finally:
        sys.setprofile(None)
    assert longest_s < 0.1, "some of these take a second in one call"


@on_loop
async def test_the_event_loop_goes_on_while_a_body_is_decoded() -> None:
    text, n_turns = ODD_BODIES["quotes"](), 0
    work = asyncio.create_task(aside(lambda: decode_or_refuse(text)))
    while not work.done():
        await asyncio.sleep(0.002)
        n_turns += 1
    assert n_turns > 10


def decode_or_refuse(text: bytes) -> None:
    with suppress(BadRequest):
        decode(text)


@on_loop
async def test_what_runs_aside_returns_and_raises_as_it_would_here() -> None:
    assert await aside(lambda: threading.current_thread().name) != threading.current_thread().name
    with pytest.raises(BadRequest, match="no"):
        await aside(lambda: decode(b"no"))


@on_loop
async def test_without_threads_work_is_done_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    from shimmy.api import aside as module

    module._threads.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert await aside(lambda: 1) == 1
    module._threads.cache_clear()
