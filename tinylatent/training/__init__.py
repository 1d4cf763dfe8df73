"""Training: the loop, its settings, the optimizer, checkpoints."""
