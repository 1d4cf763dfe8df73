"""Evaluation: judging answers, statistics over them."""
