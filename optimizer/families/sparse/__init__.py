"""Schemes that leave out blocks of weights."""
