"""`run` with a server that says what a test wants, and how it ends."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimmy import cli
from shimmy.commands.console import CommandFailed
from shimmy.commands.server_client import ServerAddress
from shimmy.commands.terminal_chat.chat_commands import complete
from shimmy.commands.terminal_chat.conversation import Conversation
from shimmy.commands.terminal_chat.reply_stream import ReplyStream, Said
from shimmy.commands.terminal_chat.session import joined, text_of
from tests.commands.terminal_chat.scripted import END, Scripted, piece

HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b[2Jdone\x9b31m\r\u202e\ud83d"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scripted]:
    for name in list(os.environ):
        if name.startswith("SHIMMY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with Scripted().running() as scripted:
        yield scripted
    root.handlers = handlers
    root.setLevel(level)


def run(scripted: Scripted, *arguments: str) -> int:
    return cli.main(["run", "tiny", "--url", scripted.url, *arguments])


def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)


def test_the_options_are_fields_of_the_request(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--system", "be kind", "-n", "9", "--temp", "0", "--seed", "4", "--api-key", "secret", "--stats")
    assert run(scripted, "say", "hello", *options) == 0
    printed = capsys.readouterr()
    assert printed.out == "Hello you\n"
    assert printed.err.startswith("3 tokens; 12.3 tokens/s; the first after ")
    assert printed.err.endswith("prompt of 7 tokens, 2 of them computed before\n")
    assert scripted.key == "Bearer secret"
    assert scripted.bodies == [
        {
            "model": "tiny", "max_tokens": 9, "temperature": 0, "seed": 4, "stream": True,
            "stream_options": {"include_usage": True}, "return_progress": True,
            "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "say hello"}],
        }
    ]  # fmt: skip


def test_a_terminal_does_not_obey_the_model_and_a_file_gets_its_words(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.reply = piece(HOSTILE, "reasoning_content") + piece(HOSTILE) + END
    assert run(scripted, "hi") == 0
    assert capsys.readouterr().out == HOSTILE.replace("\ud83d", "?") + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(scripted, "hi") == 0
    shown = "\u241b]52;c;cm0gLXJm\u2407\u241b[2Jdone\ufffd31m\ufffd\ufffd"
    assert capsys.readouterr().out == f"{shown}\n\n{shown}\n"


def test_a_person_sees_markdown_and_a_program_what_the_model_wrote(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["# Ti", "tle\n**bo", "ld\x1b** `x`\n``", "`sh\nls\n", "```"]
    scripted.reply = piece("*hm*", "reasoning_content") + b"".join(map(piece, said)) + END
    assert run(scripted, "hi") == 0
    assert capsys.readouterr().out == "".join(said) + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert run(scripted, "hi") == 0
    assert capsys.readouterr().out == "*hm*\n\n" + "".join(said).replace("\x1b", "\u241b") + "\n"
    monkeypatch.setenv("TERM", "xterm")
    assert run(scripted, "hi") == 0
    answer = "\x1b[1mTi\x1b[0m\x1b[1mtle\x1b[0m\n\x1b[1mbold\u241b\x1b[0m \x1b[36mx\x1b[0m\n\n\x1b[36mls\x1b[0m\n"
    assert capsys.readouterr().out == "\x1b[2m*hm*\x1b[0m\n\n" + answer


def test_what_was_held_back_is_shown_when_a_reply_ends_early(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    scripted.reply = piece("one **two") + b'data: {"error": {"code": "worker_died", "message": "it died"}}\n\n'
    assert run(scripted, "hi") == 1
    assert capsys.readouterr().out == "one **two\n"


def test_an_event_with_reasoning_and_content_has_both(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    choice = {"index": 0, "delta": {"content": "yes", "reasoning_content": "hm"}, "finish_reason": None}
    scripted.reply = b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode() + piece(" indeed") + END
    assert run(scripted, "hi") == 0
    assert capsys.readouterr().out == "yes indeed\n"
    stream = ReplyStream(ServerAddress.parse(scripted.url), None, {})
    assert [*stream] == [Said("hm", is_reasoning=True), Said("yes"), Said(" indeed")]


def test_a_person_sees_what_a_reply_waits_for(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def progress(n_read: int, n_cached: int, n_all: int) -> dict[str, Any]:
        return {"prompt_progress": {"total": n_all, "cache": n_cached, "processed": n_read, "time_ms": 5}}

    told = [{"queue_position": 3}, {"queue_position": 1}, progress(100, 100, 1100), progress(500, 100, 1100)]
    waits = b"".join(b"data: %b\n\n" % json.dumps({"choices": [], **each}).encode() for each in told)
    short = b"data: %b\n\n" % json.dumps({"choices": [], **progress(0, 0, 12)}).encode()
    scripted.reply = waits + piece("Hello") + END
    assert run(scripted, "hi") == 0
    assert capsys.readouterr() == ("Hello\n", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run(scripted, "hi") == 0
    printed = capsys.readouterr()
    assert printed.out == "Hello\n"
    assert re.findall(r"\x1b\[2m(.*?)\x1b\[0m", printed.err)[1:] == [
        "waiting for its turn: number 3 in the queue ...",
        "waiting for its turn: the next ...",
        "reading the prompt: 0 % of 1,000 tokens ...",
        "reading the prompt: 40 % of 1,000 tokens ...",
    ]
    assert printed.err.endswith("\r\x1b[K")
    scripted.reply = short + piece("Hello") + END
    assert run(scripted, "hi") == 0
    assert "reading" not in capsys.readouterr().err


def test_what_is_in_quotes_is_no_command(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    typed('"""/clear all of this\nplease"""\n"""/bye"""\n/clear\nagain\n', monkeypatch)
    assert run(scripted) == 0
    said = [[message["content"] for message in body["messages"]] for body in scripted.bodies]
    first = "/clear all of this\nplease"
    assert said == [[first], [first, "Hello you", "/bye"], ["again"]]


@pytest.mark.parametrize(
    ("status", "reply", "out", "told"),
    [
        (400, b'{"error": {"code": "context_length_exceeded", "message": "too long"}}', "", "too long. /clear"),
        (503, b'{"error": {"code": "out_of_memory", "message": "no \\u001b[31mroom"}}', "", "no \u241b[31mroom"),
        (200, piece("Hel") + b'data: {"error": {"code": "worker_died", "message": "it died"}}\n\n', "Hel\n", "it died"),
        (200, piece("Hel"), "Hel\n", "has ended in the middle of the reply"),
        (0, b"", "", "has ended without a reply"),
        (200, b"data: nonsense\n\n", "", "is no Shimmy server"),
        (200, b"data: " + b"[" * 100_000 + b"\n\n", "", "is no Shimmy server"),
        (404, b"<html>", "", "is no Shimmy server"),
    ],
)
def test_errors_end_with_1_and_their_reason(
    status: int, reply: bytes, out: str, told: str, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.status, scripted.reply = status, reply
    assert run(scripted, "hi") == 1
    printed = capsys.readouterr()
    assert printed.out == out
    assert told in printed.err


def test_what_cannot_be_is_told_before_anything_is_asked(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("binary").write_bytes(b"\x7fELF\0\0")
    for arguments, code, told in (
        ((), 2, "there is nothing to answer"),
        (("hi", "--threads", "1"), 2, "--threads is for a server of its own"),
        (("hi", "-f", "missing"), 1, "`missing` cannot be read"),
        (("hi", "-f", "binary"), 1, "`binary` is no text"),
    ):
        assert run(scripted, *arguments) == code
        assert told in capsys.readouterr().err
    scripted.state = {"state": "unavailable", "error": "it is cut off"}
    assert run(scripted, "hi") == 1
    assert "`tiny` cannot be served: it is cut off" in capsys.readouterr().err
    assert cli.main(["run", "missing.gguf", "hi"]) == 1
    assert "there is no file `missing.gguf`" in capsys.readouterr().err
    assert cli.main(["run", "tiny", "hi", "--bind", "127.0.0.1:9"]) == 1
    assert "no server answers" in capsys.readouterr().err
    assert scripted.bodies == []


def test_a_conversation_comes_back_from_its_file(tmp_path: Path) -> None:
    first = Conversation("be kind", settings={"temperature": 0.5})
    first.add("user", "hällo")
    first.add("assistant", "hi \x1b")
    first.save(tmp_path / "talk", "tiny")
    first.save(tmp_path / "talk", "tiny")
    second = Conversation()
    second.load(tmp_path / "talk")
    assert second == first
    other = tmp_path / "other"
    other.write_text("my notes")
    with pytest.raises(CommandFailed, match="is another file"):
        first.save(other, "tiny")
    assert other.read_text() == "my notes"
    with pytest.raises(CommandFailed, match="there is no folder"):
        first.save(tmp_path / "new" / "folder" / "talk", "tiny")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "[" * 100_000, '{"messages": []}', '{"shimmy_conversation": 1}',
        '{"shimmy_conversation": 1, "system": "", "settings": {}, "messages": [{"role": "system", "content": "x"}]}',
        '{"shimmy_conversation": 1, "system": "", "settings": {}, "messages": [{"role": "user", "content": 5}]}',
        '{"shimmy_conversation": 1, "system": "", "settings": {}, "messages": {"role": "user"}}',
        '{"shimmy_conversation": 1, "system": 5, "settings": {}, "messages": []}',
    ],
    ids=range(9),
)  # fmt: skip
def test_another_file_is_no_conversation(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    conversation = Conversation("as it was")
    with pytest.raises(CommandFailed, match="is no conversation"):
        conversation.load(tmp_path / "file")
    assert conversation == Conversation("as it was")


def test_commands_and_their_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "one.json").touch()
    monkeypatch.chdir(tmp_path)
    assert complete("/sa") == ["/save "]
    assert complete("/s") == ["/set ", "/system ", "/save ", "/stats"]
    assert complete("/load ta") == ["/load talks/"]
    assert complete("/load talks/o") == ["/load talks/one.json"]
    assert complete("/set x") == complete("/nothing x") == complete("hello") == complete("/load no/such") == []


def test_parts_of_a_message() -> None:
    assert joined("explain", ["one", "two"]) == "explain\n\none\n\ntwo"
    assert joined("", ["one"]) == "one"
    assert text_of(b"caf\xe9\n\n", "it") == "caf\ufffd"


def test_what_was_mistyped_is_guessed_and_not_all_is_listed(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("/set temp 1\n/set top_kk 1\n/set nonsense 1\n/sistem hi\n/set nonsense\n/set top_k\n", monkeypatch)
    assert run(scripted) == 0
    printed = capsys.readouterr()
    told = printed.err.splitlines()
    assert "there is no setting `temp`: did you mean `temperature`" in told[0]
    assert "there is no setting `top_kk`: did you mean `top_k`" in told[1]
    assert "there is no setting `nonsense`: such are temperature, top_p, max_tokens, seed" in told[2]
    assert "there is no command `/sistem`: did you mean `/system`?" in told[3]
    assert "there is no setting `nonsense`" in told[4]
    assert "top_k is not set: the model's own value counts" in printed.out
    assert max(map(len, told)) < 160


def test_a_new_conversation_has_no_last_reply(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.state |= {"n_ctx": 4096}
    typed("/stats\nhi\n/stats\n/save talk\n/clear\n/stats\nhi\n/load talk\n/stats\n", monkeypatch)
    assert run(scripted) == 0
    shown = re.findall(r"Last reply +(.*)\nConversation +(.*)\nContext +(.*)", capsys.readouterr().out)
    replies, messages, context = zip(*shown, strict=True)
    assert [reply.startswith("3 tokens; ") for reply in replies] == [False, True, False, False]
    assert [reply for reply in replies if not reply.startswith("3")] == ["there is none yet"] * 3
    assert messages == ("0 messages", "2 messages", "0 messages", "2 messages")
    assert [text.split()[0] for text in context] == ["0", "10", "0", "0"]


def test_a_reply_that_was_broken_off_is_reckoned(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.state |= {"n_ctx": 4096}
    read = {"total": 30, "cache": 10, "processed": 30, "time_ms": 5}
    begun = b"data: %b\n\n" % json.dumps({"choices": [], "prompt_progress": read}).encode()
    scripted.reply = begun + piece("Hel") + piece("lo")
    typed("hi\n/stats\n", monkeypatch)
    assert run(scripted) == 0
    shown = capsys.readouterr().out
    assert "Context       about 32 of 4,096 tokens" in shown
    assert re.search("Last reply    about 2 tokens; .*prompt of 30 tokens, 10 of them computed before", shown)


@pytest.mark.parametrize("has_template", [True, False, None])
def test_a_model_without_a_chat_template_is_told_once(
    has_template: bool | None,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted.state |= {} if has_template is None else {"has_chat_template": has_template}
    typed("hi\nagain\n", monkeypatch)
    assert run(scripted) == 0
    assert capsys.readouterr().err.count("tiny has no chat template: a generic one is used") == (has_template is False)
    assert run(scripted, "hi") == 0
    printed = capsys.readouterr()
    assert printed.out == "Hello you\n"
    assert ("has no chat template" in printed.err) == (has_template is False)
