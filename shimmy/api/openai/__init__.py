"""PARENT. OpenAI's chat completions, completions, embeddings and models, with llama-server's extensions."""
