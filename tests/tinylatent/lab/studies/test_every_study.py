"""Every study of experiments can be shown in either profile, and says what its records say."""

import pytest
from records import records_of, shown

from tinylatent.core.files import read_json
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.study import FINDINGS, STUDIES

TRAINED = {name: study for name, study in STUDIES.loaded().items() if study.kind is Experiment}


SLOW = {"mnns-tuning", "mnns-tuning-small", "mnns-rl-tuning", "tasks-tuning", "latentr3"}
STUDY = [pytest.param(study, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name, study in TRAINED.items()]


@pytest.mark.parametrize("profile", ["quick", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("study", STUDY)
def test_every_profile_of_every_study_can_be_shown(study, profile, tmp_path, few_draws):
    """Rows have no column that is not there, each table has findings of a named family, and the figure is drawn."""
    outcome = shown(study, profile, records_of(study, profile), tmp_path)
    assert all(each.runs for table in outcome.tables for each in table.findings)
    assert len(read_json(outcome.files[FINDINGS])["findings"]) == sum(len(table.findings) for table in outcome.tables)
    assert outcome.files["figure.png"].stat().st_size > 1000
