"""WORKER. The engine's Vulkan backend: its library, and the devices that it has. Imported only for a model that devices
compute."""
