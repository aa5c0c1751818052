"""PARENT. Which models have a worker, and how much memory each may have."""
