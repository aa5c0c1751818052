"""Where models are pulled from and where they go, as the variables of Hugging Face and Ollama and our options say.

Knows variables and folders, and nothing of the network.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shimmy.config import Config, hub_cache, ollama_store
from shimmy.errors import BadRequest
from shimmy.formats import ollama_store as store_layout
from shimmy.option_kinds import absolute_path
from shimmy.system.files import read_start

ENDPOINT = "https://huggingface.co"
REGISTRY = "https://registry.ollama.ai"
_MAX_TOKEN_BYTES = 4096
_TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub has it


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What one pull goes by."""

    endpoint: str  # of the hub, without a `/` at its end
    registry: str  # Ollama's, likewise
    token: str  # for the endpoint's host alone; '' for none
    is_offline: bool
    cache: Path | None  # the hub's cache, in its layout; None where no folder is searched for models
    store: Path | None  # Ollama's; None where no store is searched
    folder: Path | None  # of single files
    is_public_only: bool = False  # refuse private addresses, but for those of the endpoint and the registry
    ca_file: str = ""  # SSL_CERT_FILE
    ca_folder: str = ""  # SSL_CERT_DIR


def hub_settings(
    config: Config, environment: Mapping[str, str] = os.environ, *, is_public_only: bool = False
) -> HubSettings:
    """Models go where a server with the same options finds them: into the usual folders, or where those are not
    searched, into the first folder that is. Raises BadRequest for a variable that makes no sense."""
    roots = config.roots
    other = next((root for root in (*config.model_dirs, *config.model_paths) if _is_folder(root)), None)
    cache, store = hub_cache(environment), ollama_store(environment)
    own = next((root for root in config.usual_dirs if root.parts[-2:] == ("shimmy", "models")), None)
    return HubSettings(
        endpoint=_url("HF_ENDPOINT", environment.get("HF_ENDPOINT") or ENDPOINT),
        registry=_url("SHIMMY_OLLAMA_REGISTRY", environment.get("SHIMMY_OLLAMA_REGISTRY") or REGISTRY),
        token=_token(environment),
        is_offline=environment.get("HF_HUB_OFFLINE", "").lower() in _TRUE,
        cache=cache if cache in roots else other,
        store=store if store in roots else next(filter(store_layout.is_store, roots), None),
        folder=own or other,
        is_public_only=is_public_only,
        ca_file=environment.get("SSL_CERT_FILE", ""),
        ca_folder=environment.get("SSL_CERT_DIR", ""),
    )


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not store_layout.is_store(path)  # noqa: PTH112 - never raises


def _url(variable: str, text: str) -> str:
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        is_one = False
    if not is_one:
        raise BadRequest(f"{variable}: must be a URL such as {ENDPOINT} (got {text[:200]!r})")
    return text.rstrip("/")


def _token(environment: Mapping[str, str]) -> str:
    """From the variables, else from the file that `hf auth login` writes."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environment.get(variable, "").strip():
            return _checked(token, variable)
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    path = os.path.expandvars(environment.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        return _checked(read_start(absolute_path(path), _MAX_TOKEN_BYTES).decode().strip(), path)
    except (OSError, RuntimeError, ValueError):
        return ""


def _checked(token: str, source: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadRequest(f"{source}: a token has no spaces and no line breaks")
    return token
