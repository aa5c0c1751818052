"""PARENT. The page at `/` for browsers: its own modules, the libraries of others, and how they become one reply."""
