"""How good a model is: metrics, outputs beside those of float, sensitivity of layers."""
