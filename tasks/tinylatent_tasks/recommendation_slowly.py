"""The Bayes oracle of `recommendation` in exact fractions, one history at a time: the reference for tests.

It shares no code with the fast algorithms: it multiplies the probabilities of all items under every intent, where they
add logarithms of likelihood ratios. Floats are converted to fractions exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property


@dataclass(frozen=True)
class Shop:
    """The settings that probabilities depend on; an item is (category * brands + brand) * numbers + number."""

    brands: int
    """Number of brands."""
    numbers: int
    """Number of numbers."""
    intents: int
    """Number of intents."""
    noise: float
    """Probability that the rule is not followed."""
    weights: tuple[float, ...]
    """Popularity of every item, up to a factor."""

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The two lags of every intent, which are at least two apart: (1, 3), (1, 4), (2, 4), (1, 5), .."""
        found: list[tuple[int, int]] = []
        late = 3
        while len(found) < self.intents:
            found += [(early, late) for early in range(1, late) if late - early >= 2]
            late += 1
        return found[: self.intents]

    @cached_property
    def popularity(self) -> list[Fraction]:
        """The probability of every item where no rule is followed."""
        exact = [Fraction(weight) for weight in self.weights]
        total = sum(exact, Fraction(0))
        return [weight / total for weight in exact]


def rule_slowly(shop: Shop, intent: int, history: Sequence[int]) -> int:
    """The item that follows a history by an intent's rule."""
    early, late = (history[len(history) - lag] for lag in shop.pairs[intent])
    category = early // shop.numbers // shop.brands
    brand = late // shop.numbers % shop.brands
    number = (early % shop.numbers + late % shop.numbers) % shop.numbers
    return (category * shop.brands + brand) * shop.numbers + number


def probability_slowly(shop: Shop, intent: int, history: Sequence[int], item: int) -> Fraction:
    """The probability of an item after a history, given the intent."""
    noise = Fraction(shop.noise)
    by_rule = 1 - noise if rule_slowly(shop, intent, history) == item else Fraction(0)
    return by_rule + noise * shop.popularity[item]


def posterior_slowly(shop: Shop, history: Sequence[int]) -> list[Fraction]:
    """The probability of every intent given a history from the user's first item on."""
    memory = max(late for _, late in shop.pairs)
    likelihoods = [Fraction(1)] * shop.intents
    for time in range(memory, len(history)):
        before, item = history[:time], history[time]
        likelihoods = [
            likelihood * probability_slowly(shop, intent, before, item) for intent, likelihood in enumerate(likelihoods)
        ]
    total = sum(likelihoods, Fraction(0))
    return [likelihood / total for likelihood in likelihoods]


def predictive_slowly(shop: Shop, history: Sequence[int]) -> list[Fraction]:
    """The probability that an item is next, for every item, given a history."""
    posterior = posterior_slowly(shop, history)
    return [
        sum(
            (share * probability_slowly(shop, intent, history, item) for intent, share in enumerate(posterior)),
            Fraction(),
        )
        for item in range(len(shop.weights))
    ]


def most_likely_slowly(shop: Shop, history: Sequence[int]) -> int:
    """The most probable intent given a history; the lowest if several are."""
    posterior = posterior_slowly(shop, history)
    return posterior.index(max(posterior))
