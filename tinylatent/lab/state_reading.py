"""State reading: a trained run of a CTRLS-style method, its start or its rival, asked what its states mean and can do.

All problems are answered greedily in every way that a method can be read. A part of them is asked more: by every
sequence of states, and by samples, whose diversity is set beside that of plain tokens at equal entropy. What is counted
is kept per key, so that intervals are computed from records alone.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch

from tinylatent.core.identity import checksum
from tinylatent.core.seeds import derive
from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.diversity import Chains, different, entropy, matched_temperature, sampled_chains
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.evaluation.states import (
    agreement,
    labels_of,
    lattice,
    permuted_nmi,
    reachable,
    shape,
    sharpness,
    state_effect,
    state_gain,
)
from tinylatent.evaluation.statistics import pass_at_k
from tinylatent.lab.reading import OfTrained
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.run import Progress, Record, new_record, note_progress
from tinylatent.methods import GRPO, DiscreteCoT
from tinylatent.methods.ctrls import Stateful
from tinylatent.methods.ctrls_states import steps_of
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import read_metrics

UNITS = 1_000_000
"""What one problem counts for where shares are counted per key."""
PLAIN, DRAWN, MATCHED = "plain", "drawn", "matched"
BLOCKS = (5, 20)
"""Samples among which different right chains are counted."""
MOST = 256
"""Most sequences of states that are tried: more are not enumerated."""
TRIES = 16
"""Samples of a problem from which the entropy at a temperature is judged while the matching one is looked for; of both
ways, since fewer samples have less."""


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What sequences of states can reach, by trying all; per key of the part that is asked more."""

    sequences: int
    """How many there are."""
    exact: bool
    """Whether they are all that a policy can feed: single states. Of mixtures a lattice is tried."""
    best: list[int]
    """Problems that some sequence solves."""
    fixed: list[int]
    """Problems that the best single sequence solves, chosen on the other half of the keys."""
    chance: list[int]
    """Share of sequences that solve a problem, in UNITS: what states that are drawn uniformly do."""


class Draws(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several sampled chains of each problem."""

    samples: int
    """Chains of each problem."""
    temperature: float
    """Of the tokens; 0 where states alone are drawn."""
    entropy: float
    """Of a problem's chains, from the samples, in nats."""
    pass_: dict[str, list[int]] = msgspec.field(name="pass")
    """pass@n by n, unbiased, in UNITS per key."""
    different: dict[str, float]
    """Mean number of different right derivations among n samples, by n; empty where the task proves no chain."""


class Meaning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What states say about steps, and what they do."""

    steps: int
    """Steps that were labelled."""
    agreement: dict[str, float]
    """Normalised mutual information with step index, length, clusters of the bag of tokens, next token, true states."""
    chance: dict[str, float]
    """The same with states permuted."""
    effect: list[float]
    """KL of a step's tokens under one state from those under another, by step."""
    gain: float
    """Nats that chains lose when told another problem's states."""
    shape: dict[str, float]
    """Effective rank and first eigengap of a step's features."""
    sharpness: dict[str, float]
    """Largest probability and entropy in nats of the posterior, mean over steps."""


class StateRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained run, and what its states mean and can do."""

    total: list[int]
    """Problems of each key."""
    keys: str
    """Checksum of the keys."""
    right: dict[str, list[int]]
    """Right answers of each key, by the way of reading: "default", "plain", "drawn", "posterior", controls."""
    few_total: list[int]
    """Problems of each key of the part that is asked more."""
    few_right: dict[str, list[int]]
    """Right answers of each of its keys, read by default and plainly."""
    draws: dict[str, Draws]
    """By the way of sampling: "plain .7", "drawn", "matched" and so on; see `drawn_name`."""
    seconds: float
    """Of training, the run alone."""
    flops: int
    """Operations of solving a problem, on average."""
    bound: Bound | None = None
    """Absent where there are no states, or too many sequences."""
    meaning: Meaning | None = None
    """Absent where there are no states."""
    metrics: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """For a run that starts from another: every line of its metrics."""

    @cached_property
    def reading(self) -> "StateReading":
        """The run it is of."""
        return StateReading.from_json(self.run)

    def summary(self) -> str:
        """The run that was read, and its accuracy."""
        return f"{self.reading.label}: {sum(self.right[DEFAULT]) / sum(self.total):.1%} of {sum(self.total)}"


def drawn_name(way: str, temperature: float) -> str:
    """The name of a way of sampling, with the temperature of its tokens if they are sampled."""
    return f"{way} {temperature:g}" if temperature else way


@dataclass(frozen=True)
class StateReading(OfTrained):
    """A trained experiment and how much is asked of it.

    Raises ValueError for fewer than two problems, more that are asked more, or too few samples.
    """

    version: ClassVar[int] = 1
    about: ClassVar[str] = " of states"
    record = StateRecord

    problems: int = 1000
    """Most problems to ask, from the validation part."""
    few: int = 200
    """Most of them that are asked by every sequence of states, and by samples."""
    samples: int = 40
    """Chains of each of those."""
    temperatures: tuple[float, ...] = (0.0,)
    """Temperatures of tokens where states are drawn; 0 draws states alone. A run without states samples at those above
    0, which must not be all 0."""

    def __post_init__(self) -> None:
        if not 2 <= self.few <= self.problems:
            raise ValueError(
                f"few {self.few} of {self.problems} problems: expected at least 2 and at most all; try 200"
            )
        if self.samples < max(BLOCKS):
            raise ValueError(f"samples {self.samples}: expected at least {max(BLOCKS)}")
        if any(each < 0 for each in self.temperatures):
            raise ValueError(f"temperatures {self.temperatures}: expected 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values."""
        return {
            "version": self.version,
            "start": self.start.to_json(),
            "problems": self.problems,
            "few": self.few,
            "samples": self.samples,
            "temperatures": [*self.temperatures],
        }

    @classmethod
    def _settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "temperatures": tuple(map(float, values["temperatures"]))}

    @property
    def work(self) -> int:
        """Answers, samples, states."""
        return 3

    @property
    def label(self) -> str:
        """The run that is read."""
        return f"states of {self.start.label}"

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> StateRecord:
        """Loads the run from its folder, or trains it under this one's, and asks it everything."""
        start, model, saved = self.opened(folder, device, start)
        rows, few = self.spread(self.problems), self.spread(self.few)
        found: dict[str, Any] = {"total": _per_key(self.start.task.key(rows), np.ones(len(rows)))}
        found["keys"] = checksum(np.unique(self.start.task.key(rows)).tobytes())
        found["few_total"] = _per_key(self.start.task.key(few), np.ones(len(few)))
        found["right"], found["flops"] = self._answers(model, rows, device)
        found["few_right"] = self._answers(model, few, device, (DEFAULT, PLAIN))[0]
        note_progress(folder, 1, on_progress)
        found["draws"] = self._draws(model, few, device)
        note_progress(folder, 2, on_progress)
        method = self.start.method
        if isinstance(method, Stateful) and method.states != "prefix":
            found["bound"] = self._bound(method, model, few, device)
            found["meaning"] = _meaning(method, model, Symbols(self.start.task, rows), device)
        note_progress(folder, 3, on_progress)
        metrics = [] if self.start.start is None else read_metrics(start)
        environments, seconds = saved.manifest.get("environments"), round(saved.manifest["seconds"], 1)
        record: StateRecord = new_record(
            self, training=environments, device=device, **found, metrics=metrics, seconds=seconds
        )
        return record

    # -----------------------------------------------------------------------------------------------------------------
    # Answers

    def _answers(
        self, model: Model, rows: np.ndarray, device: torch.device | str, names: tuple[str, ...] = ()
    ) -> tuple[dict[str, list[int]], int]:
        """Right answers per key in every way, or in those of these names; and what an answer costs by default."""
        found, flops = {}, 0
        for name, (method, control) in ways(self.start.method).items():
            if names and name not in names:
                continue
            seed = self.start.seeds.derive("sampling", "evaluation")
            result = evaluate(Symbols(self.start.task, rows), method, model, control=control, seed=seed, device=device)
            found[name] = _per_key(self.start.task.key(rows), result.right_P)
            if name == DEFAULT:
                flops = round(result.counters.flops / len(rows))
        return found, flops

    # -----------------------------------------------------------------------------------------------------------------
    # Samples

    def _draws(self, model: Model, rows: np.ndarray, device: torch.device | str) -> dict[str, Draws]:
        """Plain samples of a run without states; drawn states, and plain samples as diverse, of one with them."""
        task, root = self.start.task, self.start.seeds.derive("sampling", "diversity")

        def sample(method: Method, temperature: float, samples: int) -> Chains:
            own = derive(root, method.name, f"{temperature:g}" if method is drawn else "plain")
            return sampled_chains(task, rows, method, model, samples, temperature=temperature, seed=own, device=device)

        drawn, found = ways(self.start.method).get(DRAWN, (None, None))[0], {}
        for temperature in self.temperatures:
            if drawn is None:
                if temperature and not isinstance(self.start.method, Stateful):
                    chains = sample(DiscreteCoT(), temperature, self.samples)
                    found[drawn_name(PLAIN, temperature)] = self._drawn(chains, rows, temperature)
                continue
            chains = sample(drawn, temperature, self.samples)
            found[drawn_name(DRAWN, temperature)] = self._drawn(chains, rows, temperature)
            target = entropy(chains.number_PS[:, :TRIES])
            at = matched_temperature(target, lambda hot: entropy(sample(DiscreteCoT(), hot, TRIES).number_PS))
            chains = sample(DiscreteCoT(), at, self.samples)
            found[drawn_name(MATCHED, temperature)] = self._drawn(chains, rows, at)
        return found

    def _drawn(self, chains: Chains, rows: np.ndarray, temperature: float) -> Draws:
        """What sampled chains are worth."""
        task, (_, S) = self.start.task, chains.number_PS.shape
        right_P = chains.right(task, rows).sum(1)
        ns = sorted({*range(1, 21), *(n for n in (32, 64, 125) if n <= S), S})
        try:
            good_PS = chains.certified(task, rows)
        except ValueError:  # the task proves no chain
            apart = {}
        else:
            apart = {str(n): different(chains.number_PS, good_PS, n) for n in BLOCKS}
        passed = {str(n): _per_key(task.key(rows), UNITS * pass_at_k(S, right_P, n)) for n in ns}
        spread = entropy(chains.number_PS)
        return Draws(samples=S, temperature=temperature, entropy=spread, pass_=passed, different=apart)

    # -----------------------------------------------------------------------------------------------------------------
    # States

    def _bound(self, method: Stateful, model: Model, rows: np.ndarray, device: torch.device | str) -> Bound | None:
        """What sequences of states can reach; None if there are more than MOST."""
        task = self.start.task
        examples = Symbols(task, rows).examples(device)
        points = lattice(method.count)
        if method.feed == "soft":
            points = torch.cat([points, torch.full_like(points[:1], 1 / method.count)])
        count = len(points) ** steps_of(examples).live_BS.shape[1]
        if count > MOST:
            return None
        right_ZP = reachable(method, model, examples, points, MOST).right_ZB.cpu().numpy()
        keys_P = task.key(rows)
        return Bound(
            sequences=count,
            exact=method.feed == "hard",
            best=_per_key(keys_P, np.asarray(right_ZP.any(0))),
            fixed=_per_key(keys_P, fixed_elsewhere(right_ZP, keys_P)),
            chance=_per_key(keys_P, np.asarray(UNITS * right_ZP.mean(0))),
        )


def ways(method: Method) -> dict[str, tuple[Method, str | None]]:
    """Every way to read a run: as it answers, its decoders, and under controls of its states.

    The language model that was trained by tokens answers greedily, as its start does.
    """
    if isinstance(method, GRPO):
        return {DEFAULT: (DiscreteCoT(), None)}
    found: dict[str, tuple[Method, str | None]] = {DEFAULT: (method, None)}
    found |= {name: (other, None) for name, other in method.decoders.items()}
    if isinstance(method, Stateful) and method.states != "prefix":
        found |= {name: (method, name) for name in CONTROLS}
    return found


def fixed_elsewhere(right_ZP: np.ndarray, keys_P: np.ndarray) -> np.ndarray:
    """Which problems (P,) the best single sequence solves, chosen on the other half of the keys.

    The best of many sequences on the very problems that are counted would seem better than it is.
    """
    half_P = np.unique(keys_P, return_inverse=True)[1] % 2 == 0
    found_P = np.zeros(len(keys_P), bool)
    for here_P in (half_P, ~half_P):
        if here_P.all() or not here_P.any():
            return np.asarray(right_ZP[right_ZP.mean(1).argmax()])
        found_P[here_P] = right_ZP[right_ZP[:, ~here_P].mean(1).argmax()][here_P]
    return found_P


def _meaning(method: Stateful, model: Model, speaker: Symbols, device: torch.device | str) -> Meaning:
    """What states say about steps, and what they do."""
    examples = speaker.examples(device)
    labels = labels_of(method, model, examples)
    state_M = labels["state"]
    others = {name: label_M for name, label_M in labels.items() if name != "state"}
    return Meaning(
        steps=len(state_M),
        agreement=agreement(labels),
        chance={name: permuted_nmi(state_M, label_M) for name, label_M in others.items()},
        effect=state_effect(method, model, examples).tolist(),
        gain=state_gain(method, model, examples),
        shape=shape(method, model, examples),
        sharpness=sharpness(method, model, examples),
    )


def _per_key(keys_P: np.ndarray, value_P: np.ndarray) -> list[int]:
    """Sums over the problems of each key, the keys in sorted order, as whole numbers."""
    _, key_P = np.unique(keys_P, return_inverse=True)
    return [int(total) for total in np.bincount(key_P, np.rint(value_P))]
