"""WORKER. Settings that are found by trying them on this machine."""
