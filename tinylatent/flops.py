"""Floating-point operations of our transformer, counted from its shape (a multiply-add is two).

A forward over S slots costs 2 * 12 D^2 a layer and slot for the matrices, 4 D a layer for every pair of slots that may
attend (S (S + 1) / 2 of them), 2 V D a readout, and 2 V D a mixture that is embedded. Training costs three forwards.

Letters: S slots, D width, V vocabulary, R readouts.
"""

from tinylatent.transformer import Shape


def forward_flops(shape: Shape, vocabulary: int, slots: int, readouts: int, mixtures: int = 0) -> int:
    """Operations of one problem: `slots` read (cached or at once: the same), of which `readouts` give logits."""
    matrices = 24 * shape.width**2 * shape.layers * slots
    attention = 4 * shape.width * shape.layers * slots * (slots + 1) // 2
    return matrices + attention + 2 * vocabulary * shape.width * (readouts + mixtures)


def training_flops(shape: Shape, vocabulary: int, slots: int, readouts: int, mixtures: int = 0) -> int:
    """Operations of forward and backward for one problem."""
    return 3 * forward_flops(shape, vocabulary, slots, readouts, mixtures)
