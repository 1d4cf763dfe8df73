"""Records made by hand, where every number is known: ten keys of a hundred problems each.

So an accuracy is the mean of ten percentages.
"""

import json

import msgspec

from tinylatent.core.files import write_text
from tinylatent.evaluation.ranking import FIGURES, Shop
from tinylatent.evaluation.ranking import KS as CUTS
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.measure import EQUAL_KS, KS
from tinylatent.lab.records import (
    BEAM,
    DEFAULT,
    Answered,
    Before,
    Cost,
    Counts,
    Evaluation,
    Ranking,
    Sampled,
    Sampling,
    StageEnd,
)
from tinylatent.lab.run import VERSION, Environments
from tinylatent.lab.study import rebuild

NOWHERE = Environments(measuring={"commit": "none"})
KEYS = [str(key) for key in range(10)]
CONTROLS = {"noise": 20, "shuffled": 30, "zero": 10}
"""Percentages under the controls, for methods that think in latents."""
HALF = Counts(right=[50] * 10, of=1)
OFFSETS = (-2, -1, 0, 1, 2) * 2
"""How far keys scatter, a step at a time."""
JITTER = {"cot2": 1, "cot2-4": 2, "coconut": 3}
"""How far keys scatter: where all agree, an interval is a bound for keys that were not seen, and ten tell nothing."""


def thinks_in_latents(method):
    """Whether the controls apply to a method."""
    if method.name == "hrpo":
        return method.gate != "token"
    if method.name == "latentr3":
        return method.thought != "constant"
    if method.name == "latentr3-rl":
        return True
    return method.name in ("coconut", "cot2") or (method.name == "grpo" and bool(method.gamma or method.samples > 1))


def evaluation(percent, jitter=0):
    """An evaluation with this percentage right, keys scattered around it."""
    right = [percent + jitter * offset for offset in OFFSETS]
    return Evaluation(
        right=right, kl=[0.1, 0.2], entropy=[1.0, 0.8, 0.6, 0.5], norm=[1.0, 3.0], problems_per_s=1000, accuracy=None
    )


def sampled(method, ks, share=HALF):
    """Sampled answers of a method, the same share at every temperature and k; None where it does not sample."""
    figures = {
        f"{t:g}": Sampled(pass_=dict.fromkeys(map(str, ks), share), majority=dict.fromkeys(map(str, ks), share))
        for t in method.temperatures
    }
    return Sampling(samples=32, temperatures=figures) if figures else None


def ranking(percent, turn=1, tail=0, lost=0, controls=(), over=None):
    """Right titles that rank first, of .25 nats, in this percentage of each key's problems; at 50, of 2, in others.

    Args:
        percent: the percentage; fifths of popularity take turns among the problems.
        turn: how far keys scatter.
        tail: points more among the least popular items.
        lost: points that the beam loses, whose keys scatter a step more.
        controls: percentages by the name of a control.
        over: by how much the arm exceeds the ceiling of 95 percent; so as the percentage says by default.
    """

    def ranks(percent, turn=turn, tail=0):
        return [
            1 if i < percent + turn * offset + tail * (i % 5 == 4) else 50 for offset in OFFSETS for i in range(100)
        ]

    value = percent / 100 - 0.95 if over is None else over
    found = {DEFAULT: ranks(percent, tail=tail), BEAM: ranks(percent - lost, turn + 1, tail)}
    nll = [0.25 if rank == 1 else 2.0 for rank in found[DEFAULT]]
    at = dict.fromkeys(map(str, CUTS), 0.95)
    return Ranking(
        quintile=[1 + i % 5 for _ in OFFSETS for i in range(100)],
        ranks={**found, **{name: ranks(each, 0) for name, each in dict(controls).items()}},
        baselines={"counts": ranks(10), "popularity": ranks(10), "bayes": ranks(90)},
        ceiling={figure: at for figure in FIGURES},
        by_quintile={figure: {k: [0.95] * 5 for k in at} for figure in FIGURES},
        nll=nll,
        excess={
            figure: {k: Interval(value, value - 0.02, value + 0.02, "made by hand") for k in at} for figure in FIGURES
        },
    )


def record_of(experiment, percent, controls=None, **changes):
    """What `measure` returns for an experiment: this percentage right, at other levels ten points less for each.

    Args:
        experiment: the run.
        percent: right answers of each key.
        controls: percentages under the controls; those of CONTROLS by default, for methods that think in latents.
        changes: fields that are otherwise.
    """
    method = experiment.method
    if controls is None:
        controls = CONTROLS if thinks_in_latents(method) else {}
    jitter = JITTER.get(method.name + ("-4" if getattr(method, "budget", None) == 4 else ""), 0)
    evaluations = {
        DEFAULT: evaluation(percent, jitter),
        **{control: evaluation(value) for control, value in controls.items()},
        **{reading: evaluation(percent + 2) for reading in method.decoders},
    }
    sampling = sampled(method, KS if experiment.start is None else EQUAL_KS)
    line = {"step": 5, "reward": 0.5, "frac_reward_zero_std": 0.25, "gradient_norm": 1.0}
    if method.name == "hrpo":
        line |= {"length": 3.0, "right_length": 2.0, "right_excess": 0.0, "ended": 1.0, "reference_kl": 0.1}
        line |= {} if method.gate == "token" else {"hidden_ratio": 0.5, "logged_ratio": 0.6}
    learning = {
        "before": Before(evaluations=evaluations, sampling=sampling),
        "metrics": [line, {**line, "step": 10, "reward": 0.75}],
    }
    levels = {
        str(level): Answered(right=evaluation(percent - 10 * up, jitter).right, total=[100] * 10, keys=str(level))
        for up, level in enumerate(experiment.task.levels())
    }
    fields = {
        "keys": KEYS,
        "total": [100] * 10,
        "evaluations": evaluations,
        "sampling": sampling,
        "stages": [StageEnd(step=5, right=[60] * 10)] if method.name == "coconut" else [],
        "levels": levels,
        "majority_baseline": 0.4,
        "parameters": 10,
        "cost": Cost(steps=4, flops=4000, training_flops=10**9, training_seconds=2.0, slots=8),
        **({} if experiment.start is None else learning),
        **({"ranking": ranking(percent, controls=controls)} if isinstance(experiment.task, Shop) else {}),
    }
    about = {"version": VERSION, "id": experiment.identity, "run": experiment.to_json()}
    return experiment.record(**about, environments=NOWHERE, **{**fields, **changes})


def changed(record, **fields):
    """The same record with other fields."""
    return msgspec.structs.replace(record, **fields)


def records_of(study, profile):
    """All rounds of a study of experiments: 90 % right in the runs of its grid, 85 % in later ones."""
    records, more, percent = [], study.grid(profile), 90
    while more:
        assert len(records) < 2000, "a study that asks for more and more"
        records += [record_of(each, percent) for each in more]
        known = {each.id for each in records}
        more = [each for each in study.after(profile, records) if each.identity not in known]
        percent = 85
    return records


def shown(study, profile, records, folder):
    """What a study makes of records: no row has a column that is not there, and every finding says what it rests on."""
    lines = ({"study": study.name, "profile": profile, **each.to_json()} for each in records)
    write_text(folder / "runs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    outcome = rebuild(study, folder)
    for table in outcome.tables:
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert all(each.family and each.runs is not None and "[" in each.evidence for each in table.findings), (
            table.title
        )
    return outcome
