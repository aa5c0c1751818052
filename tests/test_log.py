import json
import logging
from collections.abc import Iterator

import pytest

from shimmy import log


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was again afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers = handlers
    root.setLevel(level)


def test_text_is_a_line_on_stderr_with_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "text")
    logging.getLogger("shimmy.pool").warning("loaded `%s`", "tiny")
    printed = capsys.readouterr()
    time, level, message = printed.err.split(maxsplit=2)
    assert time.count(":") == 2
    assert (level, message) == ("WARNING", "loaded `tiny`\n")
    assert printed.out == ""


def test_json_is_one_object_a_line_whatever_is_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "json")
    logging.getLogger("shimmy.pool").error('two\nlines, "quotes", %s', "\udcff é")
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert isinstance(fields.pop("time"), float)
    assert fields == {
        "level": "error", "logger": "shimmy.pool", "message": 'two\nlines, "quotes", \udcff é',
    }  # fmt: skip


def test_json_carries_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "json")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("shimmy").exception("something broke")
    fields = json.loads(capsys.readouterr().err)
    assert fields["message"] == "something broke"
    assert fields["traceback"].splitlines()[-1] == "KeyError: 'lost'"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]), ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]), ("error", ["error"]),
    ],
)  # fmt: skip
def test_the_level_is_the_least_that_is_seen(level: str, seen: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(level, "json")
    for name in ("debug", "info", "warning", "error"):
        logging.getLogger("shimmy.any").log(logging.getLevelName(name.upper()), "message")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == seen


def test_setting_up_again_replaces_what_was_there(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "text")
    log.set_up("info", "json")
    assert len(root.handlers) == 1
    logging.getLogger("shimmy").info("once")
    assert capsys.readouterr().err.count("once") == 1
