"""ONNX Runtime: sessions, inputs, seconds of runs, and what this machine and its kernels do."""
