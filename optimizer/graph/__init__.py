"""What passes and plans ask of a graph: constants, shapes, matching, attributes; nothing here rewrites a model."""
