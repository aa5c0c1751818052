"""The whole route table and the middleware list on one screen, as one Starlette application."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Match, Route

from shimmy.api import ops
from shimmy.api.access import CorsHeaders, Hosts, Origins, Policy
from shimmy.api.base_urls import BaseUrls
from shimmy.api.exchange import Exchange, Receive, Scope, Send
from shimmy.api.middleware import ApiKey, Crowd, Replies
from shimmy.api.response_store import ResponseStore
from shimmy.errors import MethodNotAllowed, NotFound

if TYPE_CHECKING:
    from types import ModuleType

    from starlette.requests import Request

    from shimmy.generate import Services

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
    from shimmy.api import control

    return control


def _docs() -> "ModuleType":
    from shimmy.api import docs

    return docs


def _embeddings() -> "ModuleType":
    from shimmy.api import embeddings

    return embeddings


def _openai() -> "ModuleType":
    from shimmy.api import openai

    return openai


def _responses() -> "ModuleType":
    from shimmy.api import responses

    return responses


def _tokens() -> "ModuleType":
    from shimmy.api import tokens

    return tokens


control, docs, embeddings = Later(_control), Later(_docs), Later(_embeddings)
openai, responses, tokens = Later(_openai), Later(_responses), Later(_tokens)

# HEAD is answered wherever GET is. `{rest:path}` takes what is left of a path, slashes included.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", ops.about),
    ("GET", "/health", ops.health),
    ("GET", "/ready", ops.ready),
    ("GET", "/version", ops.version),
    ("GET", "/metrics", ops.metrics),
    ("GET", "/openapi.json", docs.openapi),
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
    ("GET", "/api/models/{rest:path}/status", control.status),
    ("POST", "/api/models/{rest:path}/load", control.load),
    ("POST", "/api/models/{rest:path}/unload", control.unload),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("POST", "/apply-template", tokens.apply_template),
)
_OPENAI_PATHS = tuple(
    dict.fromkeys(f"`{path}`" for _, path, _ in ROUTES if path.startswith("/v1/") and "{" not in path)
)
# Probes carry no key and learn one word; the page of documentation, the same everywhere, asks for a key by itself.
OPEN_PATHS = frozenset({"/health", "/ready", "/docs"})


def create_app(services: "Services") -> Starlette:
    """The application; its middleware stands from the outermost to the innermost."""
    config = services.config
    policy = Policy(config.cors_origins, has_keys=bool(config.api_keys))
    middleware = [
        Middleware(CorsHeaders, policy=policy),
        Middleware(Replies, metrics=services.metrics),
        Middleware(BaseUrls, paths=[path for _, path, _ in ROUTES]),
        Middleware(Crowd, limit=config.max_connections, open_paths=OPEN_PATHS),
        Middleware(Hosts, bind=config.bind, allowed=config.allowed_hosts),
        Middleware(Origins, policy=policy),
    ]
    if config.api_keys:
        middleware.append(Middleware(ApiKey, keys=config.api_keys, open_paths=OPEN_PATHS))
    routes = [Route(path, Endpoint(handler, services), methods=[method]) for method, path, handler in ROUTES]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _routing_error})
    app.state.responses = ResponseStore()
    app.router.redirect_slashes = False  # an unknown path is an error in our shape, not a redirect to another one
    return app


class Endpoint:
    """A handler as the plain ASGI application of its route: raw sends are faster than response objects."""

    def __init__(self, handler: Handler, services: "Services") -> None:
        self._handler = handler
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(Exchange(scope, receive, send, self._services))


def _routing_error(request: "Request", exc: Exception) -> NoReturn:
    """Starlette's own refusals, an unknown path and a wrong method, as errors of ours."""
    assert isinstance(exc, HTTPException)
    path = request.url.path[:200]
    if exc.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        raise MethodNotAllowed(f"`{path}` takes {allowed}, not {request.method[:20]}", allowed=allowed)
    if path.startswith("/v1/"):
        raise NotFound(f"Shimmy does not serve `{path}`; of the OpenAI API it has {', '.join(_OPENAI_PATHS)}")
    raise NotFound(f"there is no `{path}` here; the OpenAI API is under `/v1`")


def _methods(request: "Request") -> set[str]:
    """All that the path takes: each method is a route of its own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in route.methods or ()}
