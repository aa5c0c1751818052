"""The benchmark: Shimmy's frozen file beside `llama-server` and `llama_cpp.server`. Run it with `make bench`."""
