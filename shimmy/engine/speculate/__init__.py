"""WORKER. Speculative decoding: drafts by prompt lookup or a draft model, and whether they pay."""
