"""Families of schemes: what each decides about nodes and makes of a model."""
