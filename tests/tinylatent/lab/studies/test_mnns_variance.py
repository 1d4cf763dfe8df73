"""Study `mnns-variance`: one purpose of the seeds varies at a time, and deviations are those of these runs."""

from dataclasses import asdict, replace
from statistics import fmean, stdev

import pytest
from records import record_of

from tinylatent.core.seeds import Seeds
from tinylatent.lab.findings import HOLDS, OPEN
from tinylatent.lab.studies import mnns_variance


def test_each_purpose_is_varied_alone_and_all_together():
    grid = mnns_variance.grid("full")
    one = [each.seeds for each in grid if each.method.name == "direct"]
    assert len(grid) == 3 * len(one)
    assert len(one) == 1 + 5 * 4
    for purpose in mnns_variance.PURPOSES:
        moved = [seeds for seeds in one if getattr(seeds, purpose) and len(set(asdict(seeds).values())) > 1]
        assert len(moved) == 5
        assert {replace(seeds, **{purpose: 0}) for seeds in moved} == {Seeds()}


@pytest.mark.parametrize(("scale", "verdict"), [(30, HOLDS), (5, OPEN)])
def test_deviations_are_those_of_the_runs(scale, verdict):
    """A run is right by its split seed times a scale, its order seed, and its weights' seed times two."""
    runs = [
        record_of(each, 10 + (scale * each.seeds.split + 5 * each.seeds.order + 2 * each.seeds.init) / 5)
        for each in mnns_variance.grid("full")
    ]
    (table,) = mnns_variance.tables(runs)
    rows = {row["varied"]: row for row in table.rows if row["method"] == "direct"}
    unit = stdev(range(6))
    sd = {"split": scale / 5, "order": 1, "init": 0.4, "together": (scale + 7) / 5}
    assert {varied: row["sd"] for varied, row in rows.items()} == pytest.approx({k: unit * v for k, v in sd.items()})
    assert rows["together"]["accuracy"] == pytest.approx(fmean(10 + (scale + 7) / 5 * seed for seed in range(6)))
    assert rows["split"]["share"] == pytest.approx(100 * sd["split"] ** 2 / (sd["split"] ** 2 + 1 + 0.16))
    assert (rows["split"]["lowest"], rows["split"]["highest"]) == pytest.approx((10, 10 + scale))
    assert rows["together"]["share"] is None
    first = table.findings[0]
    assert (first.claim, first.verdict) == ("the split moves direct more than the init does", verdict)
