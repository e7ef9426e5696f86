"""Real models and labelled data that package registries ship, and tasks to judge a model by."""

from .catalogue import entry, names, path
from .fetch import Entry

__all__ = ["Entry", "entry", "names", "path"]
