"""The real models that tests run with. Knows how to get them, not what they are asked."""

from pathlib import Path

from tools.demo_models import fetch_minilm, fetch_model


def demo_model() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: small, with a chat template; fetched the first time."""
    return fetch_model("smollm2")


def template_free_model() -> Path:
    """gemma-3-270m, Q4_K_M: a base model with a sliding window and without a chat template; fetched the first time."""
    return fetch_model("gemma")


def embedding_model() -> Path:
    """all-MiniLM-L6-v2 as published, a folder in SafeTensors; fetched the first time."""
    return fetch_minilm()
