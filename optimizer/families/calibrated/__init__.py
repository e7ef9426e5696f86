"""Schemes that round activations by what a calibration saw of them."""
