"""Names of the tasks, for those who refuse others before they import any."""

from __future__ import annotations

NAMES = (
    "lee", "wordsim353", "simlex999", "sentiment", "probe", "movie-reviews", "reading", "detection", "agreement",
    "speech",
)  # fmt: skip
"""Of the tasks that fit a model, the first is its default."""
