"""Stories: reachability told in words, as ProsQA tells it, with graphs whose frontiers are exact.

    Every bampus is a rolpus. Every rolpus is a zixpus. .. Is every bampus a zixpus or a dorpus?

ProsQA (Coconut, arXiv 2412.06769) has such stories with a name for the one who is asked about. Its files give much of
the answer away (`prosqa`); here both candidates have the same distribution, as in `reachability`, whose problems these
are. A model reads a token a word; a model of transformers reads the same words in its own pieces. A step is the node it
arrives at, where ProsQA's is a sentence that ends in it.

Prompt: padding <bos>, six tokens an edge ("every bampus is a rolpus ."), then the question. Letters as in
`reachability`; X edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Vocabulary
from tinylatent_tasks.reachability import MARK, MAX_NODES, NO, YES, Reachability

STARTS, MIDDLES = "bdfglrtz", ("am", "er", "im", "ol", "um", "ix", "or", "an")
NAMES = [f"{start}{middle}pus" for middle in MIDDLES for start in STARTS][:MAX_NODES]
"""What nodes are called, the first of them first."""
WORDS = ("every", "is", "a", ".", "or")


@dataclass(frozen=True)
class Stories(Reachability):
    """Reachability in a random acyclic graph that is told in words: which of two candidates can be reached?

    Raises ValueError for sizes that are not integers or out of range, for edges that are one token, and for a question
    about one candidate.
    """

    name: ClassVar[str] = "stories"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound or self.asks != "which":
            raise ValueError(
                f"asks {self.asks!r}, bound {self.bound}: a story has an edge in six words and asks which of two; "
                "leave both out, or take reachability"
            )

    @property
    def _edge_tokens(self) -> int:
        return 6

    @property
    def _question_tokens(self) -> int:
        return 9

    @cached_property
    def names(self) -> list[str]:
        """What nodes are called."""
        return NAMES[: self.nodes]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, the mark "?", "no", "yes", a token per node, and the other words of a story."""
        return Vocabulary((*SPECIAL_TOKENS, MARK, NO, YES, *self.names, *WORDS))

    def _told(self, edges_X2: Integers) -> Integers:
        every, is_, a, stop = (np.full(len(edges_X2), self.vocabulary.index(word)) for word in WORDS[:4])
        source_X, target_X = (edges_X2 + self._first).T
        return np.column_stack([every, source_X, is_, a, target_X, stop]).ravel()

    def _asked(self, root_P: Integers, candidate_P2: Integers) -> Integers:
        words = "is", "every", root_P, "a", candidate_P2[:, 0], "or", "a", candidate_P2[:, 1], MARK
        columns = [
            np.full(len(root_P), self.vocabulary.index(word)) if isinstance(word, str) else word + self._first
            for word in words
        ]
        return np.column_stack(columns)

    def question(self, problem: Sequence[int]) -> str:
        """The story in words."""
        value = self.to_json(problem)
        told = " ".join(f"Every {self.names[u]} is a {self.names[v]}." for u, v in value["edges"])
        root, first, second = (self.names[node] for node in (value["root"], *value["candidates"]))
        return f"{told} Is every {root} a {first} or a {second}?"
