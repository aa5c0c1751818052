"""The whole route table: which method on which path is whose. A dialect is imported with its first request."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from shimmy.api.admin import ops
from shimmy.api.http_exchange import Exchange, Scope, is_browser

if TYPE_CHECKING:
    from types import ModuleType


Handler = Callable[[Exchange], Awaitable[None]]


class Later:
    """Handlers whose module is imported with its first request: a start needs none of them, and most servers few.

    They are as quick as others from then on. `load` imports the module and returns it; that takes some tens of
    milliseconds, and the event loop goes on meanwhile.
    """

    def __init__(self, load: "Callable[[], ModuleType]") -> None:
        self._load = load
        self._module: ModuleType | None = None

    def __getattr__(self, name: str) -> Handler:
        async def handle(exchange: Exchange) -> None:
            if self._module is None:
                from shimmy.api.aside import aside

                self._module = await aside(self._load)
            await getattr(self._module, name)(exchange)

        return handle


def _control() -> "ModuleType":
    from shimmy.api.admin import control

    return control


def _docs() -> "ModuleType":
    from shimmy.api.openapi import routes as docs

    return docs


def _embeddings() -> "ModuleType":
    from shimmy.api.openai import embeddings

    return embeddings


def _openai() -> "ModuleType":
    from shimmy.api.openai import routes as openai

    return openai


def _page() -> "ModuleType":
    from shimmy.api.page import routes as page

    return page


def _pulls() -> "ModuleType":
    from shimmy.api.admin import pulls

    return pulls


def _responses() -> "ModuleType":
    from shimmy.api.responses import routes as responses

    return responses


def _tokens() -> "ModuleType":
    from shimmy.api.admin import tokens

    return tokens


control, docs, embeddings = Later(_control), Later(_docs), Later(_embeddings)
openai, page, pulls = Later(_openai), Later(_page), Later(_pulls)
responses, tokens = Later(_responses), Later(_tokens)


async def _front(exchange: Exchange) -> None:
    await (page.page if is_browser(exchange.scope) else ops.about)(exchange)


async def _openapi(exchange: Exchange) -> None:
    from shimmy.api.openapi.document import document

    await exchange.reply(document([(method, path) for method, path, _ in ROUTES], OPEN_PATHS))


# HEAD is answered wherever GET is. `{rest:path}` takes what is left of a path, slashes included.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", _front),
    ("GET", "/health", ops.health),
    ("GET", "/ready", ops.ready),
    ("GET", "/version", ops.version),
    ("GET", "/metrics", ops.metrics),
    ("GET", "/openapi.json", _openapi),
    ("GET", "/docs", docs.page),
    ("GET", "/v1/models", openai.models),
    ("GET", "/v1/models/{rest:path}", openai.model),
    ("POST", "/v1/chat/completions", openai.chat_completions),
    ("POST", "/v1/completions", openai.completions),
    ("POST", "/v1/embeddings", embeddings.embeddings),
    ("POST", "/v1/responses", responses.create),
    ("POST", "/v1/responses/input_tokens", responses.input_tokens),
    ("GET", "/v1/responses/{rest}", responses.retrieve),
    ("DELETE", "/v1/responses/{rest}", responses.delete),
    ("GET", "/v1/responses/{rest}/input_items", responses.input_items),
    ("POST", "/v1/responses/{rest}/cancel", responses.cancel),
    ("GET", "/api/events", control.events),
    ("GET", "/api/models", control.models),
    ("POST", "/api/models/discover", control.discover),
    ("POST", "/api/models/pull", pulls.pull),
    ("GET", "/api/suggestions", pulls.suggestions),
    ("GET", "/api/models/{rest:path}/status", control.status),
    ("POST", "/api/models/{rest:path}/load", control.load),
    ("POST", "/api/models/{rest:path}/unload", control.unload),
    ("DELETE", "/api/models/{rest:path}", control.delete),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("POST", "/apply-template", tokens.apply_template),
)
# Probes carry no key and learn one word; the pages, the same everywhere, ask for a key by themselves.
OPEN_PATHS = frozenset({"/health", "/ready", "/docs"})
# What a page of a foreign site could do harm with that lasts: `--cors-origins '*'` is not enough for it.
NAMED_ORIGINS_ONLY = frozenset({("POST", "/api/models/pull"), ("DELETE", "/api/models/{rest:path}")})


def is_open(scope: Scope) -> bool:
    """Whether a request is answered without a key."""
    return scope["path"] in OPEN_PATHS or (scope["path"] == "/" and is_browser(scope))
