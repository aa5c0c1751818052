"""Named by hypercorn.typing, in annotations that nothing evaluates."""
