"""PARENT AND WORKER. Frozen values that cross borders, one file a subject. They know no HTTP and no llama.cpp."""
