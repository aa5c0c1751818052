"""The route table and the list of middleware as one Starlette application."""

from typing import TYPE_CHECKING, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Match, Route

from shimmy.api.api_keys import ApiKey
from shimmy.api.base_urls import BaseUrls
from shimmy.api.http_exchange import ASGIApp, Exchange, Receive, Scope, Send
from shimmy.api.middleware import Crowd, Replies
from shimmy.api.responses.store import ResponseStore
from shimmy.api.routes import NAMED_ORIGINS_ONLY, OPEN_PATHS, ROUTES, Handler, is_open
from shimmy.api.web_origins import CorsHeaders, Hosts, NamedOrigins, Origins, Policy
from shimmy.errors import MethodNotAllowed, NotFound

if TYPE_CHECKING:
    from starlette.requests import Request

    from shimmy.generation import Services

_OPENAI_PATHS = tuple(
    dict.fromkeys(f"`{path}`" for _, path, _ in ROUTES if path.startswith("/v1/") and "{" not in path)
)


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
        middleware.append(Middleware(ApiKey, keys=config.api_keys, is_open=is_open))
    routes = []
    for method, path, handler in ROUTES:
        endpoint: ASGIApp = Endpoint(handler, services)
        if (method, path) in NAMED_ORIGINS_ONLY:
            endpoint = NamedOrigins(endpoint, policy)
        routes.append(Route(path, endpoint, methods=[method]))
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
