"""Other Linux systems to run the frozen file in, as folders that become its root: see `python -m tests.roots`."""
