"""PARENT AND WORKER. Quantised weights of checkpoints: which layout each has, read from headers and configuration."""
