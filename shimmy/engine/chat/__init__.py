"""WORKER. Conversations to prompts: the chat template, and what it tells of a model's tool calls and reasoning."""
