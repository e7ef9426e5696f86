"""Schemes that round weights alone."""
