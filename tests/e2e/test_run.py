"""`run`: one answer or a chat, in a terminal and without one, with a server that runs and with one of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.terminal_chat.scripted import END, Scripted, piece
from tests.e2e.conftest import StartServer
from tests.e2e.harness import HOST, PROGRAM, PROMPTS, STEADY_SEED, Server, environment, run
from tests.e2e.processes import command_line, wait_for
from tests.e2e.terminal import CTRL_C, CTRL_D, ENTER, UP, Terminal, in_terminal, plain
from tests.hub.servers import FakeHub
from tests.tiny_models import write_tiny_model

PROMPT, NO_PROMPT = "\x1b[?2004h", "\x1b[?2004l"  # what a terminal is told of pasting while a line is read
ERASE = "\r\x1b[K"
GREEDY = ("--temp", "0", "-n", "16")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every command has `tmp_path` as its folder for temporary files, by which its processes are known."""
    yield
    wait_for("every process to end", lambda: not processes(tmp_path))
    assert not list(tmp_path.glob("_MEI*"))


def processes(folder: Path) -> list[int]:
    mark = f"TMPDIR={folder}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (path / "environ").read_bytes() and " Z " not in (path / "stat").read_text():
                found.append(int(path.name))
    return found


def url(server: Server) -> tuple[str, str]:
    return "--url", f"http://{HOST}:{server.port}"


def own(models: Path) -> tuple[str | Path, ...]:
    """Arguments for a server of the chat's own."""
    return ("--model-path", models, "--threads", "1", *GREEDY)


# -- without a terminal ------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_one_answer_is_what_the_server_says(tmp_path: Path, server: Server) -> None:
    expected = server.chat(PROMPTS[0], max_tokens=16) + "\n"
    answered = run(tmp_path, "run", "alpha", PROMPTS[0], *url(server), *GREEDY)
    assert (answered.stdout, answered.returncode) == (expected, 0), answered.stderr
    words = run(tmp_path, "run", "alpha", *url(server), *GREEDY, *PROMPTS[0].split())
    assert words.stdout == expected, "words without quotes"
    assert "the limit of tokens" in words.stderr


def test_what_is_piped_in_and_files_belong_to_the_question(tmp_path: Path, server: Server) -> None:
    (tmp_path / "log").write_text("from the file\n")
    expected = server.chat("explain\n\nfrom the file\n\nfrom the pipe", max_tokens=16) + "\n"
    answered = run(tmp_path, "run", "alpha", "explain", "-f", "log", *url(server), *GREEDY, stdin="from the pipe\n")
    assert answered.stdout == expected, answered.stderr
    alone = run(tmp_path, "run", "alpha", *url(server), *GREEDY, stdin="from the pipe\n")
    assert alone.stdout == server.chat("from the pipe", max_tokens=16) + "\n"


def test_without_a_server_it_has_one_of_its_own_that_ends_with_it(tmp_path: Path, models: Path, server: Server) -> None:
    expected = server.chat(PROMPTS[0], max_tokens=16) + "\n"
    by_file = run(tmp_path, "run", models / "alpha.gguf", PROMPTS[0], *GREEDY, "--threads", "1", "--stats")
    assert (by_file.stdout, by_file.returncode) == (expected, 0), by_file.stderr
    assert re.search(r"16 tokens; .*tokens/s; the first after", by_file.stderr)
    assert not list(tmp_path.glob("shimmy-*/*"))


def test_exit_codes(tmp_path: Path, models: Path, server: Server) -> None:
    for arguments, code, told in (
        (("alfa", "hi", "--model-path", models), 1, "no model `alfa`; did you mean `alpha`"),
        (("alpha", *url(server)), 2, "nothing to answer"),
        (("alpha", "hi", "--model-path", models, "--cpu-variant", "none"), 1, "none"),
    ):
        ended = run(tmp_path, "run", *arguments)
        assert (ended.returncode, ended.stdout) == (code, ""), (arguments, ended)
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path, endless: Server) -> None:
    command = [*PROGRAM, "run", "alpha", "hello", *url(endless)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait() in (1, -13, 141)
        assert process.stderr.read() == b""
    endless.wait_until_idle("alpha")


# -- in a terminal -----------------------------------------------------------------------------------------------------


def say(terminal: Terminal, text: str) -> str:
    """Type a line at the prompt; returns what comes up to the next prompt."""
    terminal.type(text + ENTER)
    terminal.expect("\r\n")
    return plain(terminal.expect(PROMPT)).replace(">>> ", "")


@pytest.mark.smoke
def test_a_chat_goes_on_and_remembers(tmp_path: Path, server: Server) -> None:
    state = {"XDG_STATE_HOME": f"{tmp_path}/state"}
    with in_terminal(tmp_path, "run", "alpha", *url(server), *GREEDY, variables=state) as terminal:
        terminal.expect(PROMPT)
        assert say(terminal, PROMPTS[0]).startswith(server.chat(PROMPTS[0], max_tokens=16).strip("\n"))
        assert re.search(
            r"16 tokens; .*\nConversation +2 messages\nContext +\d+ of 4,096 tokens", say(terminal, "/stats")
        )
        say(terminal, "/save talk.json")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
        assert "a new conversation" in say(terminal, "/clear")
        assert "0 messages" in say(terminal, "/stats")
        assert "a conversation of 2 messages" in say(terminal, "/load talk.json")
        assert "no setting `warmth`" in say(terminal, "/set warmth 3")
        assert "from 0 to 1" in say(terminal, "/set top_p 3")
        say(terminal, "/set top_p 0.5")
        assert "top_p 0.5" in say(terminal, "/set")
        say(terminal, "/system be brief")
        assert "be brief" in say(terminal, "/system")
        assert "there is no command `/dance`" in say(terminal, "/dance")
        assert "/bye" in say(terminal, "/help")
        terminal.type("typed" + ENTER + " while the model speaks" + ENTER + "/stats" + ENTER)
        terminal.expect("6 messages")
        terminal.type(UP * 4)
        terminal.expect("/help")
        terminal.type("\x15" + '"""one' + ENTER + 'two"""' + ENTER)
        terminal.expect(PROMPT)
        terminal.type("/bye" + ENTER)
        assert terminal.wait() == 0
        assert terminal.mode_now == terminal.before
    with in_terminal(tmp_path, "run", "alpha", *url(server), variables=state) as terminal:
        terminal.expect(PROMPT)
        terminal.type(UP * 3)
        terminal.expect('"""one')
        terminal.type(CTRL_C + CTRL_D)
        assert terminal.wait() == 0


def test_ctrl_c_stops_the_reply_and_at_an_empty_prompt_the_chat(tmp_path: Path, endless: Server) -> None:
    with in_terminal(tmp_path, "run", "alpha", *url(endless), "--no-history") as terminal:
        for text in ("hello", "go on"):
            terminal.expect(PROMPT)
            terminal.type(text + ENTER)
            terminal.expect(NO_PROMPT)
            terminal.expect(" ")
            terminal.type(CTRL_C)
            terminal.expect("(stopped)")
            endless.wait_until_idle("alpha")
        assert terminal.process.poll() is None
        terminal.type("half a line" + CTRL_C)
        terminal.expect(PROMPT)
        terminal.type(CTRL_C)
        assert terminal.wait() == 0
        assert terminal.mode_now == terminal.before


def test_an_interrupted_answer_has_its_exit_code(tmp_path: Path, endless: Server) -> None:
    with in_terminal(tmp_path, "run", "alpha", "hello", *url(endless)) as terminal:
        terminal.expect(" ")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.output


def test_an_answer_that_goes_into_a_file_can_be_interrupted(tmp_path: Path, endless: Server) -> None:
    with (tmp_path / "answer").open("w+b") as answer:
        with in_terminal(tmp_path, "run", "alpha", "hello", *url(endless), stdout=answer) as terminal:
            terminal.expect("answering: ")
            terminal.type(CTRL_C)
            assert terminal.wait() == 130
        assert answer.seek(0, os.SEEK_END)
    assert plain(terminal.output).replace("^C", "") == "(stopped)\n"


def test_a_terminal_that_can_nothing(tmp_path: Path, server: Server) -> None:
    with in_terminal(tmp_path, "run", "alpha", *url(server), *GREEDY, variables={"TERM": "dumb"}) as terminal:
        terminal.expect(">>> ")
        terminal.type(PROMPTS[0] + "\n")
        terminal.expect(server.chat(PROMPTS[0], max_tokens=16).split()[0])
        terminal.expect(">>> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
        assert "\x1b" not in terminal.output


def test_no_colour_where_none_is_wanted(tmp_path: Path, server: Server) -> None:
    outputs = {}
    for no_color in ("", "1"):
        with in_terminal(tmp_path, "run", "alpha", *url(server), *GREEDY, variables={"NO_COLOR": no_color}) as terminal:
            terminal.expect(PROMPT)
            terminal.type("hi" + ENTER)
            terminal.expect(PROMPT)
            terminal.type(CTRL_D)
            assert terminal.wait() == 0
            outputs[no_color] = terminal.output
    assert "\x1b[2m" in outputs[""]
    assert not re.search(r"\x1b\[[0-9;]*m", outputs["1"])


@pytest.mark.parametrize("n_columns_before", [20, 80])
def test_a_narrow_terminal(n_columns_before: int, tmp_path: Path, server: Server) -> None:
    with in_terminal(tmp_path, "run", "alpha", *url(server), *GREEDY, size=(n_columns_before, 8)) as terminal:
        terminal.expect(PROMPT)
        terminal.resize((20, 8))
        terminal.type(PROMPTS[0])
        terminal.expect(f">>> {PROMPTS[0][:16]}\r")
        terminal.expect(f"\n{PROMPTS[0][16:]}")
        terminal.type(ENTER)
        terminal.expect(server.chat(PROMPTS[0], max_tokens=16).split()[0])
        terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


@pytest.mark.parametrize("n_columns", [80, 20])
def test_who_waits_for_a_file_to_be_filled_sees_why(n_columns: int, tmp_path: Path) -> None:
    scripted = Scripted()
    scripted.state = {"state": "loading", "read_percent": 40, "size_bytes": 3_000_000_000}
    progress = {"total": 1100, "cache": 100, "processed": 500, "time_ms": 5}
    reading = b"data: %b\n\n" % json.dumps({"choices": [], "prompt_progress": progress}).encode()
    scripted.reply = reading + piece("hm", "reasoning_content") + piece("**Hello** you") + END
    with scripted.running(), (tmp_path / "answer").open("w+b") as answer:
        size = (n_columns, 24)
        with in_terminal(tmp_path, "run", "tiny", "hi", "--url", scripted.url, size=size, stdout=answer) as terminal:
            assert terminal.wait() == 0
        assert answer.seek(0) == 0
        assert answer.read() == b"**Hello** you\n"
    lines = [plain(text) for text in terminal.output.split(ERASE)]
    assert lines[-1] == "", "nothing is left of it"
    assert max(map(len, lines)) <= n_columns - 1
    told = ("loading tiny: 40 % of 3.0 GB ...", "reading the prompt: 40 % of 1,000 tokens ...")
    for text in (*told, "thinking: 2 characters ..."):
        assert (text if n_columns == 80 else f"{text[:18]}…") in lines


def test_nothing_is_in_the_way_of_what_reads_the_answer(tmp_path: Path) -> None:
    """What stands behind a pipe may write to the same terminal."""
    scripted = Scripted()
    scripted.reply = piece("Hello") + b": ping\n\n" + piece(" you") + END
    with scripted.running(), subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        with in_terminal(tmp_path, "run", "tiny", "hi", "--url", scripted.url, stdout=reader.stdin) as terminal:
            assert terminal.wait() == 0
        assert reader.communicate()[0] == b"Hello you\n"
    assert [plain(text) for text in terminal.output.split(ERASE)][-2:] == ["starting ...", ""]


def test_a_model_that_is_not_there_is_fetched_if_the_person_says_so(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "tiny").read_bytes()
    hub = FakeHub({"o/Tiny-GGUF": {"tiny-Q4_K_M.gguf": model}})
    arguments = ("run", "hf.co/o/Tiny-GGUF", "--model-dirs", tmp_path / "models", *GREEDY)
    (tmp_path / "models").mkdir()
    with hub.running():
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": f"{tmp_path}/hf", "NO_PROXY": "*", "no_proxy": "*"}
        with in_terminal(tmp_path, *arguments, variables=variables) as terminal:
            terminal.expect("is not on this machine. Fetch it? [Y/n] ")
            terminal.type("n" + ENTER)
            assert terminal.wait() == 1
        assert run(tmp_path, *arguments, "hi").stderr.endswith("`shimmy pull hf.co/o/Tiny-GGUF` fetches it\n")
        bare = run(tmp_path, "run", "llama3", "hi", "--model-dirs", tmp_path / "models")
        assert bare.stderr.endswith("; if Ollama has one, `shimmy run ollama:llama3` fetches it\n")
        with in_terminal(tmp_path, *arguments, variables=variables) as terminal:
            terminal.expect("Fetch it? [Y/n] ")
            terminal.type(ENTER)
            terminal.expect("pulling tiny-Q4_K_M.gguf")
            terminal.expect(PROMPT)
            assert "shimmy: " not in say(terminal, "hello")
            terminal.type(CTRL_D)
            assert terminal.wait() == 0
        with in_terminal(tmp_path, *arguments, variables=variables) as terminal:
            terminal.expect(PROMPT)
            terminal.type(CTRL_D)
            assert terminal.wait() == 0
            assert "Fetch" not in terminal.output


# -- servers that end --------------------------------------------------------------------------------------------------


def test_a_server_that_dies_in_a_reply_does_not_end_the_chat(tmp_path: Path, start: StartServer) -> None:
    endless = write_tiny_model(tmp_path, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    server = start("--model-path", endless, "--ctx-size", "65536")
    with in_terminal(tmp_path, "run", "alpha", *url(server)) as terminal:
        terminal.expect(PROMPT)
        terminal.type("hello" + ENTER)
        terminal.expect(NO_PROMPT)
        terminal.expect(" ")
        os.kill(server.pid, signal.SIGKILL)
        terminal.expect("shimmy: the server on")
        terminal.expect(PROMPT)
        terminal.type("again" + ENTER)
        terminal.expect("does not answer")
        terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_its_own_server_comes_back(tmp_path: Path, models: Path) -> None:
    with in_terminal(tmp_path, "run", "alpha", *own(models)) as terminal:
        terminal.expect(PROMPT)
        kill(pid for pid in processes(tmp_path) if b"serve" in command_line(pid) and pid != terminal.process.pid)
        wait_for("the server's end", lambda: not serving(tmp_path))
        assert "shimmy: " not in say(terminal, "hello")
        assert serving(tmp_path)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended with one of the others
            os.kill(pid, signal.SIGKILL)


def serving(folder: Path) -> list[int]:
    return [pid for pid in processes(folder) if b"--background" in command_line(pid)]


@pytest.mark.parametrize("how", ["the window is closed", "it is killed"])
def test_its_own_server_ends_with_it_however_that_ends(how: str, tmp_path: Path, models: Path) -> None:
    with in_terminal(tmp_path, "run", "alpha", *own(models)) as terminal:
        terminal.expect(PROMPT)
        assert serving(tmp_path)
        if how == "it is killed":
            others = set(processes(tmp_path)) - {*serving(tmp_path)}
            kill(pid for pid in others if b"worker" not in command_line(pid))
        else:
            terminal.hang_up()
            wait_for("its end", lambda: terminal.process.poll() is not None)
        wait_for("the server's end", lambda: not serving(tmp_path))
    if how == "it is killed":
        for left in tmp_path.glob("_MEI*"):  # of the killed one, which the next server would remove
            shutil.rmtree(left)


# -- in tmux -----------------------------------------------------------------------------------------------------------


def test_in_tmux_the_screen_looks_as_it_should(tmp_path: Path, server: Server) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux")
    tmux = ("tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null")

    def screen() -> list[str]:
        shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
        return shown.rstrip("\n").split("\n")

    def press(*keys: str) -> None:
        subprocess.run([*tmux, "send-keys", *keys], check=True)

    command = [*PROGRAM, "run", "alpha", *url(server), *GREEDY, "--no-history"]
    size = ("-x", "40", "-y", "12")
    variables = environment(tmp_path) | {"TERM": "xterm"}
    subprocess.run([*tmux, "new-session", "-d", *size, *command], env=variables, cwd=tmp_path, check=True)
    try:
        wait_for("the prompt", lambda: screen()[-1] == ">>>")
        press("ab日本語 and a text that is longer than its row")
        row = ">>> ab日本語 and a text that is longer t"
        wait_for("the text", lambda: screen()[-2:] == [row, "han its row"])
        press("Home", "x", "Right", "Right", "BSpace")
        wait_for("the change", lambda: screen()[-2:] == [row.replace("ab", "xa"), "han its row"])
        press("C-c")
        wait_for("an empty line", lambda: screen()[-1] == ">>>")
        press("hello", "Enter")
        wait_for("the reply", lambda: screen()[-1] == ">>>" and ">>> hello" in screen()[:-2])
        press("C-d")
        wait_for("the chat's end, and tmux's with it", lambda: not processes(tmp_path))
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
