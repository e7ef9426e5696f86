"""Calibration: what a model's tensors hold when it runs on real data, and the ranges that follow from it."""
