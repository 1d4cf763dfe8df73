"""Lenses: what a model does inside; they return data and draw nothing."""
