"""Real models and labelled data that package registries ship, and tasks to judge a model by."""

from .catalogue import Entry, entry, names, path

__all__ = ["Entry", "entry", "names", "path"]
