"""One server for all clients, and the variables by which they find it where they expect OpenAI.

The tests are written as applications for OpenAI are, down to the names of the models: only the base URL is another. The
model is a small one, so they ask what an answer is made of, not what it says.
"""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Server, serving
from tests.models import demo_model, embedding_model

# Read when the clients are imported, which is after this: nothing here may look for the network.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}

NEEDS_NPM = pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm on this machine")


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves SmolLM2 and all-MiniLM under OpenAI's names. Greedy, and with an end, where a client says nothing."""
    text_model, embedder = demo_model(), embedding_model()
    arguments = (
        "--model-path", text_model, "--alias", f"gpt-*={text_model.stem}",
        "--model-path", embedder, "--alias", f"text-embedding-*={embedder.name}",
        "--temp", "0", "--n-predict", "160",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, *arguments, threads="") as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", running.url)
        patch.setenv("OPENAI_API_BASE", running.url)  # as langchain and litellm call it
        patch.setenv("OPENAI_API_KEY", "none")
        yield running
