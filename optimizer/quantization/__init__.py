"""Pure functions on arrays: (weight, scheme) -> quantized weight. No ONNX here."""
