"""PARENT AND WORKER. What the system offers: files, processor, memory, control groups, the unpacked program."""
