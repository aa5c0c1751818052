"""PARENT AND WORKER. What the operating system offers: files, processor, memory, control groups, the unpacked program."""
