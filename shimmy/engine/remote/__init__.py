"""WORKER. llama.cpp's RPC backend: the engine's end on both machines, each over a socket that it was given."""
