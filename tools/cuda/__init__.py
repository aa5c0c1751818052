"""ggml's CUDA backend, for NVIDIA's GPUs: a library of its own beside the engine, in a file of its own."""
