"""Training: the loop, its recipe, optimizer groups, checkpoints."""
