"""PARENT AND WORKER. Frozen values that cross borders, a file for each subject. They know no HTTP and no llama.cpp."""
