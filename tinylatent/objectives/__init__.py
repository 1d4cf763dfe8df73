"""Objectives: what methods share: their base class, examples and speakers, losses, rewards, policy gradient."""
