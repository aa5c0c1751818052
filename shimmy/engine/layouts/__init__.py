"""WORKER. Quantised layouts of SafeTensors, computed with numpy: arrays in, arrays out."""
