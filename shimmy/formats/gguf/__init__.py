"""PARENT AND WORKER. GGUF files: reading, writing, and what llama.cpp would abort on."""
