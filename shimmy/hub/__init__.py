"""PARENT. The outbound network: models from Hugging Face, Ollama's registry and URLs; never imported by a server."""
