"""What tests of claims share: the verdict of a claim, whether it has changed, and numbers in float64."""

import torch
from tinylatent_theory.claims.ledger import LEDGER, Trial


def verdict(name):
    """What a claim's check says now."""
    return LEDGER[name].check(Trial()).verdict


def broken(name):
    """Whether that is no longer what is on record."""
    return verdict(name) != LEDGER[name].recorded


def number(value):
    """A tensor in float64."""
    return torch.tensor(value, dtype=torch.float64)
