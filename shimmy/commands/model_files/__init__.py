"""PARENT. Model files from the command line: fetched, removed, named."""
