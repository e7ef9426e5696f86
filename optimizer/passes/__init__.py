"""Graph rewrites, one a file. Each says what it changed and gives a reason for what it left alone."""
