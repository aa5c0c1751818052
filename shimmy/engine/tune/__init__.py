"""WORKER. Settings found by measurement on this machine: threads, repacked weights, cores."""
