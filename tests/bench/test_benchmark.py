"""What the benchmark reads out of a stream, and what it makes of the figures. Nothing here is measured."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import limits, report
from tests.bench.client import Reply, ReplyFailed, stream, stream_chat
from tests.bench.figures import MILLISECONDS, TOKENS_PER_S, Figure
from tests.bench.peers import PEERS
from tests.bench.plot import Bar, plot
from tests.bench.workloads import FIGURES, WORKLOADS
from tests.fakes import on_loop
from tools.steps import BuildError

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(*events: object) -> bytes:
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def piece(text: str, reason: str | None = None) -> object:
    return {"choices": [{"text": text, "finish_reason": reason}]}


async def replied(*writes: bytes) -> Reply:
    """What the client makes of these writes, each of which it reads by itself."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for data in writes:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        return await stream(server.sockets[0].getsockname()[1], "m", "p", 3)


@on_loop
async def test_pieces_of_text_have_the_time_of_the_write_they_came_with() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
    tricky = piece("\ndata: {c")
    reply = await replied(
        HEAD + chunk(piece("")), chunk(piece("a"), piece("b")), chunk(tricky), chunk(piece("", "length"), usage)
    )
    assert (reply.text, reply.n_prompt, reply.n_tokens) == ("ab\ndata: {c", 5, 4)
    first, second, third = reply.text_at_s
    assert first == second < third <= reply.ended_s
    assert reply.accepted_s < first
    assert first - reply.asked_s == reply.first_text_s


@on_loop
async def test_a_chat_is_read_like_a_completion() -> None:
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": None}, {"content": "hi"}, {}]
    events = [{"choices": [{"delta": delta, "finish_reason": None if delta else "length"}]} for delta in deltas]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /v1/chat/completions ")
        writer.write(HEAD + chunk(*events))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reply = await stream_chat(server.sockets[0].getsockname()[1], "m", [{"role": "user", "content": "p"}], 3)
    assert (reply.text, reply.n_tokens, len(reply.text_at_s)) == ("hi", 1, 1)


@pytest.mark.parametrize(
    ("writes", "reason"),
    [
        ([b"HTTP/1.1 503 No\r\n\r\nbusy"], "503"), ([], "not 200"), ([HEAD + chunk(piece("a"))], "broke off"),
    ],
)  # fmt: skip
@on_loop
async def test_what_is_no_whole_reply_has_failed(writes: Sequence[bytes], reason: str) -> None:
    with pytest.raises(ReplyFailed, match=reason):
        await replied(*writes)


def test_gaps_are_those_under_way_in_a_time() -> None:
    reply = Reply(0.0, 0.5, 1.0, 9.0, 1, 9, "", (1.0, 2.0, 5.0, 6.0, 9.0))
    assert reply.gaps_s(3.0, 5.5) == [3.0, 1.0]
    assert reply.gaps_s(9.5, 10.0) == []
    assert (reply.tokens_per_s, reply.decode_tokens_per_s) == (1.0, 1.0)


def test_every_figure_has_one_workload_and_goals_for_servers_there_are() -> None:
    keys = [figure.key for workload in WORKLOADS.values() for figure in workload.figures]
    assert len(keys) == len(set(keys)) == len(FIGURES)
    assert all(figure.goals.keys() <= PEERS.keys() for figure in FIGURES.values())


def test_a_goal_stands_only_beside_a_server_that_takes_part() -> None:
    for workload in WORKLOADS.values():
        for name in {name for figure in workload.figures for name in figure.goals}:
            taken = PEERS[name].workloads
            assert taken is None or workload.name in taken, (workload.name, name)
    assert all(peer.workloads is None or peer.workloads <= WORKLOADS.keys() for peer in PEERS.values())


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> report.Results:
    figures = (
        Figure("rate", "one stream", TOKENS_PER_S, {"llama-server": 1.1}),
        Figure("first_s", "first token", MILLISECONDS, {"llama-server": 1.0, "shimmy": 0.15}),
        Figure("ours", "only ours", TOKENS_PER_S, {"llama-server": 1.0}),
        Figure("theirs", "only theirs", TOKENS_PER_S, {"llama-server": 1.0}),
        Figure("size", "not asked of everybody", TOKENS_PER_S),
    )
    for module in (report, limits):
        monkeypatch.setattr(module, "FIGURES", {figure.key: figure for figure in figures})
    monkeypatch.setattr(limits, "FILE", tmp_path / "limits.md")
    (tmp_path / "limits.md").write_text("# Why\n\n## first_s\nThe clock.\n\nAnd more.\n\n## rate\nIt was reached.\n")
    rounds = [
        {
            "shimmy": {"rate": 120.0 + n, "first_s": 0.2, "ours": 1.0, "theirs": None, "size": 9.0},
            "llama-server": {"rate": 100.0, "first_s": 0.1, "ours": None, "theirs": 1.0},
        }
        for n in range(3)
    ]
    about = {"machine": "a machine", "busy_percent": 1, "n_threads": 2, "minutes": 3, "command": "bench"}
    return {"models": {"small": rounds}, **about}


def test_the_table_says_what_was_reached_and_what_was_not(results: report.Results) -> None:
    assert report.tables(results).splitlines() == [
        "| small | unit | shimmy | llama-server | shimmy / llama-server |",
        "| --- | --- | ---: | ---: | ---: |",
        "| one stream | tok/s | 121.0 (120.0-122.0) | 100.0 (100.0-100.0) | 1.21 (1.20-1.22) ≥ 1.10 |",
        "| first token | ms | 200 (200-200) **≤ 150** | 100 (100-100) | 2.00 (2.00-2.00) **≤ 1.00** |",
        "| only ours | tok/s | 1.0 (1.0-1.0) | fails |  |",
        "| only theirs | tok/s | fails | 1.0 (1.0-1.0) |  **≥ 1.00** |",
        "| not asked of everybody | tok/s | 9.0 (9.0-9.0) |  |  |",
    ]


def test_missed_targets_are_listed_with_what_was_written_about_them(results: report.Results) -> None:
    assert report.missed(results).splitlines() == [
        "Targets that were missed:",
        "",
        "- **first token**: small: 200 (≤ 150); small: 2.00 x llama-server (≤ 1.00).",
        "",
        "  The clock.",
        "",
        "  And more.",
        "",
        "- **only theirs**: small: fails (≥ 1.00).",
        "",
        "  What limits it was not found yet.",
    ]


@pytest.mark.usefixtures("results")
def test_what_is_written_about_a_figure_there_is_not_is_an_error() -> None:
    limits.FILE.write_text("## frist_s\nThe clock.\n")
    with pytest.raises(BuildError, match="frist_s"):
        limits.limits()


def test_what_is_really_written_is_about_figures_there_are() -> None:
    assert limits.limits().keys() <= FIGURES.keys()


def test_the_page_keeps_what_was_written_by_hand(
    results: report.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, file = tmp_path / "page.md", tmp_path / "results.json"
    monkeypatch.setattr(report, "DOCUMENT", page)
    monkeypatch.setattr(report, "PLOT", tmp_path / "page.svg")
    file.write_text(json.dumps(results))
    page.write_text(f"by hand\n\n{report.BEGIN}old\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_document(file)
    text = page.read_text()
    assert text.startswith(f"by hand\n\n{report.BEGIN}\n- Machine: a machine.")
    assert text.endswith(f"\n\n{report.END}\nafter\n")
    assert "old" not in text
    assert text.count("| one stream |") == text.count("The clock.") == 1
    assert "](page.svg)" in text
    assert (tmp_path / "page.svg").read_text() == report.plotted(results)


def test_the_real_page_has_its_place() -> None:
    text = report.DOCUMENT.read_text()
    assert 0 < text.find(report.BEGIN) < text.find(report.END)


def test_the_plot_shows_faster_to_the_right_and_slower_to_the_left(results: report.Results) -> None:
    svg = ET.fromstring(report.plotted(results))
    bars = [node for node in svg if node.tag.endswith("rect")][1:]
    texts = [node.text for node in svg if node.tag.endswith("text")]
    assert [bar.get("fill") for bar in bars] == ["#2a7f62", "#c0504d"]
    end_of_worse = float(bars[1].get("x", "")) + float(bars[1].get("width", ""))
    assert end_of_worse == pytest.approx(float(bars[0].get("x", "")), abs=0.2)
    assert {"one stream", "1.21x", "0.50x", "small"} <= set(texts)


def test_labels_are_text_and_not_markup() -> None:
    svg = plot("<b>", {"a & b": [Bar("x < y", 1.0, 1.0, 1.0)]})
    assert {node.text for node in ET.fromstring(svg)} >= {"<b>", "a & b", "x < y"}
