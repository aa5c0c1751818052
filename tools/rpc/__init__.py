"""ggml's RPC backend, for models over several machines: a library of its own beside the engine."""
