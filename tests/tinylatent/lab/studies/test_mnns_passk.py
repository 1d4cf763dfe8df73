"""Study `mnns-passk`: k sampled chains beside their decoded steps, and CoT2's single one against them."""

import pytest
from records import record_of

from tinylatent.lab.findings import FAILS, HOLDS
from tinylatent.lab.measure import KS
from tinylatent.lab.records import Counts, Sampled, Sampling
from tinylatent.lab.studies import mnns_passk
from tinylatent.methods import DiscreteCoT


def share(name, temperature, k):
    """A share for each figure, temperature and k: more of each is better."""
    return min(1.0, 0.06 * k + 0.1 * float(temperature) + 0.05 * (name == "pass"))


def counts(name, temperature):
    """That share of seven, for every k."""
    return {str(k): Counts(right=[round(100 * 7 * share(name, temperature, k))] * 10, of=7) for k in KS}


def test_pass_and_majority_stand_beside_their_steps():
    temperatures = {
        f"{t:g}": Sampled(pass_=counts("pass", t), majority=counts("majority", t)) for t in DiscreteCoT.temperatures
    }
    sampling = Sampling(samples=32, temperatures=temperatures)
    runs = [
        record_of(each, 70, **({"sampling": sampling} if each.method.name == "discrete" else {}))
        for each in mnns_passk.grid("full")
    ]
    _, table = mnns_passk.tables(runs)
    assert len(table.rows) == len(temperatures) * len(KS)
    for row in table.rows:
        k, temperature = int(row["k"]), row["temperature"]
        assert row["steps"] == 4 * k
        assert row["pass@k"] == pytest.approx(100 * share("pass", temperature, k), abs=0.1)
        assert row["majority@k"] == pytest.approx(100 * share("majority", temperature, k), abs=0.1)
        assert row["published"] == (mnns_passk.PUBLISHED_PASS[row["k"]] if temperature == "1" else None)
    found = {each.claim: each for each in table.findings}
    vote = found["one shot of CoT2 (4 steps) is above majority@5 of discrete CoT (20 decoded steps, temperature 1.4)"]
    assert (vote.verdict, vote.estimate.value) == (HOLDS, pytest.approx(0.26, abs=0.01))
    known = found["one shot of CoT2 (4 steps) is above pass@10 of discrete CoT (40 decoded steps, temperature 1.4)"]
    assert (known.verdict, known.estimate.value) == (FAILS, pytest.approx(-0.09, abs=0.01))
