"""WORKER. Which rows of which jobs the next decode has: batches, prefill beside streams, LoRA turns, embeddings."""
