"""A conversion from end to end: requests, the gate, what a model says beside its graph, and the report."""
