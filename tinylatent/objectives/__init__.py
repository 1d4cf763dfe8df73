"""Objectives: what methods share: examples and their speakers, losses, policy gradients, rewards."""
