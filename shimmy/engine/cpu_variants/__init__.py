"""WORKER. Which build of ggml's kernels this processor runs, and whether it computes correctly."""
