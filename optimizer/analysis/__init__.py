"""Looking at models: what is in them, what a conversion did to their numbers, and how fast they run."""
