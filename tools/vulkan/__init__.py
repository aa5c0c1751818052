"""ggml's Vulkan backend, for GPUs of any vendor: a library of its own beside the engine."""
