"""The plugin execution provider: runs quantized nodes of stock models on the kernels of custom_ops."""
