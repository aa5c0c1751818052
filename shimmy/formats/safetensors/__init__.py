"""PARENT AND WORKER. SafeTensors files and the folders that Hugging Face's tools write."""
