"""Evaluation: judges answers, ranks candidates, and estimates intervals."""
