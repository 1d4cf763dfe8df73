"""Records of tasks with a catalogue hold the rank of every right title, and studies take rates from them."""

import json
import math

import numpy as np
import pytest
from records import changed, record_of
from tinylatent_tasks import MNNS, Recommendation

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.ranking import KS, gains, quintiles, ranks
from tinylatent.evaluation.retrieval import scores_and_beams
from tinylatent.evaluation.statistics import accuracy_interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.measure import measure
from tinylatent.lab.records import BEAM, DEFAULT, GAIN_UNITS, Ranking
from tinylatent.lab.run import read_record
from tinylatent.lab.studies import compare
from tinylatent.methods import METHODS, CoT2, Direct, SASRec
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

TASK = Recommendation(4, 3, 2, events=4, zipf=1.5)
ITEMS = Recommendation(4, 3, 2, events=4, zipf=1.5, item_tokens=True)
SHORT = Training(steps=12, batch_size=16, learning_rate=0.01, num_train=240)
RUN = Experiment(TASK, CoT2(), ModelConfig(8, 1, 1), SHORT, Seeds.all(4))
DRAWN = Ranking(
    quintile=[1, 2, 2, 5],
    ranks={DEFAULT: [1, 3, 6, 2], BEAM: [1, 2, 8, 8]},
    baselines={"bayes": [1, 1, 1, 2]},
    ceiling={},
    by_quintile={},
    nll=[0.1, 0.9, 1.5, 0.2],
    excess={},
)
"""Four problems of three keys, the second key with two."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A record, and the model it is of."""
    folder = tmp_path_factory.mktemp("run")
    record = measure(RUN, folder)
    return record, load(folder)[1]


def by_key(run, values_P):
    """Values of problems in the order of their keys."""
    keys_P = run.task.key(run.rows("validation"))
    return [values_P[place] for place in sorted(range(len(keys_P)), key=lambda place: (keys_P[place], place))]


def test_every_way_of_thinking_is_ranked_as_it_is_evaluated(measured):
    record, model = measured
    rows, seed = RUN.rows("validation"), RUN.seeds.derive("sampling", "evaluation")
    assert [*record.ranking.ranks] == [DEFAULT, BEAM, "noise", "shuffled", "zero"]
    for name, found in record.ranking.ranks.items():
        if name != BEAM:
            control = None if name == DEFAULT else name
            scores_PI, _ = scores_and_beams(
                RUN.speaker("validation"), RUN.method, model, TASK.catalogue, control=control, seed=seed
            )
            assert found == by_key(RUN, ranks(scores_PI, TASK.answer(rows)))
    _, listed_PW = scores_and_beams(RUN.speaker("validation"), RUN.method, model, TASK.catalogue, width=10, seed=seed)
    right = TASK.answer(rows).tolist()
    beam = [[*listed].index(item) + 1 if item in listed else 24 for listed, item in zip(listed_PW, right, strict=True)]
    assert record.ranking.ranks[BEAM] == by_key(RUN, beam)
    assert record.ranking.quintile == by_key(RUN, quintiles(TASK.popularity)[right])
    scores_PI, _ = scores_and_beams(RUN.speaker("validation"), RUN.method, model, TASK.catalogue, seed=seed)
    nll_P = [-scores[item] / TASK.catalogue.shape[1] for scores, item in zip(scores_PI, right, strict=True)]
    assert record.ranking.nll == pytest.approx(by_key(RUN, nll_P), abs=1e-5)


def test_rankings_without_a_model_stand_beside(measured):
    record, _ = measured
    rows, found = RUN.rows("validation"), record.ranking.baselines
    right_P, asked = TASK.answer(rows), TASK.answer(RUN.rows("train")).tolist()
    count = [asked.count(item) for item in range(24)]
    better = [sum(other >= count[item] for other in count) for item in right_P.tolist()]
    assert found["counts"] == by_key(RUN, better)
    assert found["popularity"] == by_key(RUN, ranks(TASK.popularity, right_P))
    assert found["bayes"] == by_key(RUN, ranks(TASK.predictive(rows), right_P))


def test_the_ceiling_stands_beside_and_is_not_exceeded(measured):
    record, _ = measured
    rows, found = RUN.rows("validation"), record.ranking
    for k in KS:
        ceiling = TASK.ceiling(rows, k)
        for figure in ("hit", "ndcg"):
            assert found.ceiling[figure][str(k)] == pytest.approx(ceiling[figure])
            own = found.excess[figure][str(k)]
            mean = np.mean(gains(np.array(found.ranks[DEFAULT]), figure, k))
            assert own.value == pytest.approx(mean - ceiling[figure])
            assert own.low <= own.value <= own.high
            assert own.low < 0
            assert len(found.by_quintile[figure][str(k)]) == 5
            assert 0 < min(found.by_quintile[figure][str(k)]) <= max(found.by_quintile[figure][str(k)]) <= 1


def test_a_record_with_ranks_goes_to_json_and_back(measured):
    record, _ = measured
    written = json.loads(json.dumps(record.to_json()))
    assert read_record(Experiment, written) == record
    written["ranking"]["ranks"][DEFAULT].pop()
    with pytest.raises(ValueError, match="as many ranks as quintiles"):
        read_record(Experiment, written)
    with pytest.raises(ValueError, match="for each problem the likelihood of its right title"):
        changed(DRAWN, nll=[0.5])
    for change in ({"quintile": [1, 2]}, {"ranks": {DEFAULT: [0, 3, 6, 2]}}):
        with pytest.raises(ValueError, match="a rank of 1 or more, and as many ranks"):
            Ranking(**{**{name: getattr(DRAWN, name) for name in DRAWN.__struct_fields__}, **change})
    with pytest.raises(ValueError, match="ranks of 4 problems: expected 1000"):
        changed(record_of(RUN, 90), ranking=DRAWN)


def test_tasks_without_a_catalogue_have_no_ranking_and_their_records_no_field():
    record = measure(Experiment(MNNS(2, 1, 4), Direct(), ModelConfig(8, 1, 1), Training(steps=2, batch_size=4)), None)
    assert record.ranking is None
    assert "ranking" not in record.to_json()
    for task in (Recommendation(), TASK):
        assert "item_tokens" not in Experiment(task).to_json()["task"]
    assert Experiment(ITEMS).identity != Experiment(TASK).identity


def test_counts_are_gains_of_each_key():
    total = [1, 2, 1]
    assert DRAWN.counts(total, "hit", 5) == (
        [GAIN_UNITS, GAIN_UNITS, GAIN_UNITS],
        [GAIN_UNITS, 2 * GAIN_UNITS, GAIN_UNITS],
    )
    assert DRAWN.counts(total, "hit", 1, BEAM)[0] == [GAIN_UNITS, 0, 0]
    assert DRAWN.counts(total, "hit", 1, "bayes")[0] == [GAIN_UNITS, 2 * GAIN_UNITS, 0]
    ndcg, most = DRAWN.counts(total, "ndcg", 10)
    assert [gain / GAIN_UNITS for gain in ndcg] == pytest.approx(
        [1, 0.5 + 1 / math.log2(7), 1 / math.log2(3)], abs=1e-6
    )
    assert most == [GAIN_UNITS, 2 * GAIN_UNITS, GAIN_UNITS]
    assert DRAWN.counts(total, "hit", 3, quintile=2) == ([GAIN_UNITS], [2 * GAIN_UNITS])
    assert DRAWN.counts(total, "hit", 3, quintile=5) == ([GAIN_UNITS], [GAIN_UNITS])
    with pytest.raises(ValueError, match="no ranking 'noise': expected one of default, beam, bayes"):
        DRAWN.counts(total, "hit", 3, "noise")
    with pytest.raises(ValueError, match="no problem has its right item in quintile 3"):
        DRAWN.counts(total, "hit", 3, quintile=3)


def test_studies_show_rates_with_intervals_and_paired_differences(measured):
    record, _ = measured
    counts, most = record.ranking.counts(record.total, "ndcg", 5)
    found = compare.rate([record], "ndcg", 5)
    assert found == accuracy_interval([counts], [most])
    assert found.value == pytest.approx(gains(np.array(record.ranking.ranks[DEFAULT]), "ndcg", 5).mean(), abs=1e-6)
    bayes = compare.rate([record, record], "hit", 5, "bayes")
    gap = compare.rate_difference([record], [record], "hit", 5, "bayes")
    assert gap.value == pytest.approx(compare.rate([record], "hit", 5).value - bayes.value)
    theirs = record.ranking.counts(record.total, "hit", 5, "popularity", 1)
    ours = record.ranking.counts(record.total, "hit", 5, quintile=1)
    assert compare.rate_difference([record], [record], "hit", 5, "popularity", 1) == paired_difference(
        [ours[0]], [theirs[0]], [ours[1]]
    )
    shares = [compare.rate([record], "hit", 5, quintile=quintile).value for quintile in range(1, 6)]
    weights = np.bincount(record.ranking.quintile)[1:]
    assert np.average(shares, weights=weights) == pytest.approx(compare.rate([record], "hit", 5).value)
    with pytest.raises(ValueError, match="ranked no titles: expected a task with a catalogue"):
        compare.rate([changed(record, ranking=None)], "hit", 5)
    other = changed(record, ranking=changed(record.ranking, quintile=record.ranking.quintile[::-1]))
    with pytest.raises(ValueError, match="items of other popularity"):
        compare.rate_difference([record], [other], "hit", 5)


@pytest.mark.parametrize("task", [TASK, ITEMS], ids=["titles", "items"])
@pytest.mark.parametrize("name", ["sasrec", "pause"])
def test_titles_and_items_are_ranked_on_the_same_problems(task, name, measured):
    record = measure(Experiment(task, METHODS[name](), ModelConfig(8, 1, 1), SHORT, Seeds.all(4)), None)
    assert (record.keys, record.total) == (measured[0].keys, measured[0].total)
    assert record.ranking.baselines == measured[0].ranking.baselines
    assert record.ranking.quintile == measured[0].ranking.quintile
    assert compare.rate_difference([record], measured[:1], "hit", 10).kind
    if task is ITEMS:
        first = np.array(record.ranking.ranks[DEFAULT]) == 1
        assert first.sum() <= sum(record.evaluations[DEFAULT].right), "ties rank the right title last"
        assert (np.array(record.ranking.ranks[BEAM])[first] == 1).all()


@pytest.mark.slow
def test_sasrec_learns_what_popularity_cannot_know():
    """Little noise and one intent: the next item follows from two earlier ones, wherever they stand."""
    task = Recommendation(2, 2, 2, intents=1, noise=0.05, events=8, item_tokens=True, by_users=True)
    training = Training(steps=1200, batch_size=64, learning_rate=3e-3, num_train=4000)
    run = Experiment(task, SASRec(), ModelConfig(32, 2, 2), training, Seeds.all(0))
    record = measure(run, None)
    ours, bayes = (compare.rate([record], "hit", 1, way).value for way in (DEFAULT, "bayes"))
    assert ours > 0.9 * bayes > compare.rate([record], "hit", 1, "counts").value + 0.3
    assert record.ranking.excess["hit"]["1"].low <= 0
