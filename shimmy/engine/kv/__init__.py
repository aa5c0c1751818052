"""WORKER. The KV pool, the prefixes that jobs share in it, and prompts kept on the disk."""
