"""What model files look like on disk. Headers are read by the parent, so nothing here imports numpy at the top."""
