"""Counters: what running a model cost, filled by the engine itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What a trace cost, summed over rows, without waiting and padding."""

    forwards: int = 0
    """Calls of the model."""
    slots: int = 0
    """Slots read; a prompt that a group shares counts once."""
    steps: int = 0
    """Actions taken."""
    tokens: int = 0
    """Actions with a token."""
    latents: int = 0
    """Inputs with a latent part; a gated thought counts here and in `tokens`."""
    flops: int = 0
    """Floating-point operations of blocks, readouts and mixtures of the whole table."""
    judged: int = 0
    """Answers that a verifier was asked about; a method that searches counts them."""

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))
