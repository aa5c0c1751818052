"""PARENT AND WORKER. SafeTensors to GGUF: the parent plans, a worker converts."""
