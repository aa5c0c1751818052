"""Many streams at once: each keeps its own text, whatever the others do, however they leave and however slowly they
are read."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, ENDLESS, LONG_PROMPT, PROMPTS, STEADY_SEED, Server, Stream, chat_body
from tests.e2e.processes import wait_for
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def texts(endless: Server) -> list[str]:
    """What three prompts lead to when each has the server for itself."""
    return [endless.chat(prompt) for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("n_ctx", [4096, 512])
def test_32_streams_at_once_have_the_texts_they_have_alone(start: StartServer, tmp_path: Path, n_ctx: int) -> None:
    """With 4,096 tokens all of them run at once; with 512 they wait in line and take each other's cells."""
    model = write_tiny_model(tmp_path, "alpha", n_ctx_train=n_ctx, seed=STEADY_SEED)
    server = start("--model-path", model, threads="")
    alone = [server.chat(prompt) for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    with ExitStack() as connections:
        streams = [connections.enter_context(server.stream(prompt)) for prompt in PROMPTS]
        assert [stream.finish().text for stream in streams] == alone
        assert all(stream.is_done and stream.finish_reason == "length" for stream in streams)
    assert server.n_jobs("alpha") == 0


def check_others(server: Server, texts: list[str], leaver: Stream, n_pieces: int | None) -> None:
    """Run three streams beside one that leaves after `n_pieces`, or unread."""
    with leaver, ExitStack() as connections:
        streams = [connections.enter_context(server.stream(prompt)) for prompt in PROMPTS[:3]]
        if n_pieces is not None:
            leaver.read(n_pieces)
            assert leaver.n_pieces >= n_pieces
        leaver.leave()
        assert [stream.finish().text for stream in streams] == texts
        assert all(stream.is_done for stream in streams)
    server.wait_until_idle("alpha")


@pytest.mark.parametrize("n_pieces", [None, *range(20), 50, 100])
def test_a_stream_that_leaves_disturbs_no_other(endless: Server, texts: list[str], n_pieces: int | None) -> None:
    check_others(endless, texts, endless.stream(PROMPTS[3], **ENDLESS), n_pieces)


def test_a_stream_that_leaves_in_its_prompt_disturbs_no_other(endless: Server, texts: list[str]) -> None:
    n_first_tokens = endless.metric("shimmy_first_token_seconds_count", "alpha")
    leaver = endless.stream("the user and the assistant " * 8000, **ENDLESS)
    wait_for("the job to run", lambda: endless.n_jobs("alpha") == 1)
    check_others(endless, texts, leaver, None)
    assert endless.metric("shimmy_first_token_seconds_count", "alpha") == n_first_tokens + len(texts)


def test_a_client_that_leaves_before_a_whole_reply_ends_its_job(endless: Server, texts: list[str]) -> None:
    with endless.later(CHAT, chat_body(PROMPTS[3], **ENDLESS)):
        wait_for("the job to run", lambda: endless.n_jobs("alpha") == 1)
    assert endless.chat(PROMPTS[0]) == texts[0]
    endless.wait_until_idle("alpha")


def test_clients_that_leave_in_their_request_start_no_job(endless: Server, texts: list[str]) -> None:
    body = json.dumps(chat_body(PROMPTS[3], **ENDLESS)).encode()
    request = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
    for length in (0, 1, 30, len(request) // 2, len(request) - 1):
        with endless.connect() as client:
            client.sendall(request[:length])
    assert endless.chat(PROMPTS[0]) == texts[0]
    endless.wait_until_idle("alpha")


def test_a_slow_reader_holds_nobody_up_and_gets_its_whole_text(endless: Server, texts: list[str]) -> None:
    n_tokens = 2000
    whole = endless.stream(LONG_PROMPT, max_tokens=n_tokens).finish()
    with endless.stream(LONG_PROMPT, max_tokens=n_tokens, buffer_bytes=4096) as slow:
        slow.read(1)
        assert [endless.chat(prompt) for prompt in PROMPTS[:3]] == texts
        endless.wait_until_idle("alpha")  # its job has ended although hardly a byte of it was read
        slow.finish()
    assert slow.text == whole.text
    assert slow.is_done
    assert slow.n_pieces < 0.8 * n_tokens  # what was not read in time was joined


@pytest.mark.smoke
def test_a_stream_tells_how_much_of_its_prompt_is_read(endless: Server) -> None:
    prompt = "the user and the assistant " * 800
    for is_cached in (False, True):
        stream = endless.stream(prompt, return_progress=True, max_tokens=4).finish()
        told = [each["prompt_progress"] for each in stream.progress if "prompt_progress" in each]
        first, last = told[0], told[-1]
        assert first["processed"] == first["cache"]
        assert (first["cache"] > last["total"] // 2) == is_cached
        assert last["processed"] == last["total"] > 3000
        assert {each["total"] for each in told} == {last["total"]}
        assert [each["processed"] for each in told] == sorted({each["processed"] for each in told})
        assert [each["time_ms"] for each in told] == sorted(each["time_ms"] for each in told)
        assert is_cached or len(told) > 2
        assert stream.n_pieces
        assert stream.is_done
        entry = endless.get("/api/models/alpha/status").json()
        assert last["total"] <= entry["n_ctx_used"] <= entry["n_ctx"]
        assert endless.metric("shimmy_kv_used_tokens", "alpha") == entry["n_ctx_used"]
    assert endless.stream(prompt, max_tokens=4).finish().progress == []
    assert endless.chat(prompt, return_progress=True, max_tokens=4)


def test_a_stream_that_waits_for_its_turn_is_told_its_place(start: StartServer, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    server = start("--model-path", model, "--parallel", "1")
    with ExitStack() as connections:
        running = connections.enter_context(server.stream(PROMPTS[0], **ENDLESS)).read()
        streams = []
        for number in (1, 2):
            stream = server.stream(PROMPTS[number], return_progress=True, max_tokens=4)
            streams.append(connections.enter_context(stream))
            assert stream.next_progress() == {"queue_position": number}
        running.leave()
        assert streams[1].next_progress() == {"queue_position": 1}
        assert [stream.finish().is_done for stream in streams] == [True, True]
