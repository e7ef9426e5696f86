"""Gradients through ONNX graphs, by PyTorch: of the extra `torch`, which only what trains imports.

What needs no torch itself is `torch_package`; all other modules import it, so whoever uses them does so in a function,
behind `require_torch`.
"""
