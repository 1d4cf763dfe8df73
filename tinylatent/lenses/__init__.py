"""Lenses: record what a model computes inside; they return data and draw nothing."""
