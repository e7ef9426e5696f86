"""Changes of weights that leave a model's float outputs as they are, and make it round better."""
