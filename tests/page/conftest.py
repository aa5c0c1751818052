"""A browser, a server with a real model, and a page in them that must not complain."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.e2e.harness import Server, serving
from tests.models import demo_model
from tests.page.driving import Chat
from tests.tiny_models import write_tiny_model
from tools.page import chromium

expect.set_options(timeout=30_000)
# What a browser itself writes where a server does not answer or refuses: those are what some of the tests are about.
EXPECTED = ("Failed to load resource", "net::ERR_")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny `alpha`, which writes for long, and a file that is no model."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder, "alpha", n_ctx_train=65536)
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("server")
    arguments = ("--model-path", demo_model(), "--model-path", models, "--temp", "0")
    with serving(folder, *arguments) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Inside a container there is no room for Chromium's own sandbox, and little in /dev/shm.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that remembers nothing yet, of a page that may not speak with anything but its server."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """An empty tab. What it loads must run without an error, and without a word in the console."""
    page = context.new_page()
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if not any(text in message.text for text in EXPECTED):
            complaints.append(f"{message.type}: {message.text}")

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


@pytest.fixture
def chat(page: Page, server: Server) -> Chat:
    """The page of the shared server, with the demo model chosen."""
    chat = Chat(page, server.port)
    chat.open()
    chat.choose("smollm2-135m-instruct.q4-1")
    return chat
