"""PARENT AND WORKER. How families of models write tool calls where that is not JSON: one file each."""
