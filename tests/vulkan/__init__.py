"""What tools/vulkan makes."""
