"""Which nodes a scheme takes and which it leaves, with the reason; weights on their way to being rounded."""
