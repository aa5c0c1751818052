"""The one way in: `pull` fetches what a reference names, and says how far it is.

    path = pull("hf.co/OWNER/NAME:Q4_K_M", hub_settings(config), report)

Blocks; runs threads of its own, so it belongs into a process of its own, never into a server.
"""

from pathlib import Path

from shimmy.errors import PullFailed
from shimmy.hub.hugging_face import pull_repository
from shimmy.hub.ollama_registry import pull_name
from shimmy.hub.references import HubReference, OllamaReference, parse
from shimmy.hub.settings import HubSettings
from shimmy.hub.single_file import pull_url
from shimmy.hub.transfer.events import Meter, Report
from shimmy.hub.transfer.file_source import Transfer
from shimmy.hub.transfer.web import Web


def pull(reference: str, settings: HubSettings, report: Report) -> Path:
    """Fetch a model, unless it is there, and return where it is: a GGUF file, a SafeTensors folder, or the manifest in
    Ollama's store. `report` gets each event, on any thread, one at a time. Raises BadRequest, NotFound, PullFailed.
    """
    meter = Meter(report)
    found = parse(reference, settings.endpoint)
    meter.say("resolving", reference=reference)
    transfer = Transfer(Web(settings), meter)
    try:
        if isinstance(found, HubReference):
            path = pull_repository(found, settings, transfer)
        elif isinstance(found, OllamaReference):
            path = pull_name(found, settings, transfer)
        else:
            path = pull_url(found, settings, transfer)
    except OSError as exc:
        place = f"`{exc.filename}` cannot be used: " if exc.filename else ""
        raise PullFailed(f"{place}{exc.strerror or exc}") from exc
    finally:
        transfer.client.close()
    meter.say("done", path=str(path), total_bytes=meter.n_completed)
    return path
