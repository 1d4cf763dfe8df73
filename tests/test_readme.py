"""The README tells the truth: its numbers are those of stored runs, its output that of the commands."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tinylatent_theory.claims.study import LEDGER

from tinylatent.cli.main import main, parse
from tinylatent.lab.studies.compare import accuracy, grouped, method_of
from tinylatent.lab.study import STUDIES, kept, read_runs, rebuild, study_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = {folder: study_of(folder) for folder in kept(ROOT / "results")}


def block(name):
    """What stands between two markers, without the indentation of code."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found is not None, name
    return "\n".join(line.removeprefix("    ") for line in found[1].splitlines())


@pytest.mark.parametrize(("name", "stored", "tables"), [("quick", "mnns-quick", None), ("result", "mnns", 1)])
def test_tables_are_the_stored_ones(name, stored, tables):
    """Which are rebuilt from their runs byte for byte, below."""
    _, *parts = (ROOT / "results" / stored / "table.md").read_text(encoding="utf-8").split("\n**")
    for part in parts[:tables]:
        assert ("**" + part).strip() in block(name)


def test_cot2_is_as_accurate_as_promised():
    """At least 98.9 % over seeds 0 to 4 with all traces at d = 32, tuned on other splits."""
    groups = grouped(read_runs(STUDIES["mnns"], ROOT / "results/mnns"), method_of)
    assert [record.experiment.seeds.split for record in groups["cot2"]] == list(range(5))
    assert accuracy(groups["cot2"]).value >= 0.989


def test_the_log_quotes_the_tables_it_points_to():
    """In a paragraph that links tables every number with two decimals stands in one of them."""
    log = (ROOT / "results/LOG.md").read_text(encoding="utf-8")
    checked = 0
    for paragraph in log.split("\n\n"):
        tables = re.findall(r"\]\(([^)#]+/table\.md)\)", paragraph)
        told = "".join((ROOT / "results" / table).read_text(encoding="utf-8") for table in tables)
        for number in re.findall(r"\d+\.\d\d(?!\d)", paragraph) if tables else []:
            assert number in told, f"{number} in: {paragraph[:60]}"
            checked += 1
    assert checked > 10


@pytest.mark.slow
@pytest.mark.parametrize("stored", KEPT, ids=lambda stored: stored.name)
def test_stored_results_are_rebuilt_byte_for_byte(stored, tmp_path):
    (tmp_path / "runs.jsonl").write_bytes((stored / "runs.jsonl").read_bytes())
    rebuild(KEPT[stored], tmp_path)
    names = {path.name for path in stored.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names - {"figure.png"}:
        assert (tmp_path / name).read_bytes() == (stored / name).read_bytes(), name


def test_every_study_has_its_full_results():
    assert {study.name for folder, study in KEPT.items() if folder.name == study.name} == {*STUDIES}


def test_the_ledger_is_as_long_as_promised_and_its_verdicts_those_on_record():
    records = read_runs(STUDIES["claims"], ROOT / "results/claims")
    assert f"checks {len(LEDGER)} statements" in " ".join(README.split())
    assert {record.claim.name: record.verdict for record in records} == {
        name: claim.recorded for name, claim in LEDGER.items()
    }


def test_show_prints_what_the_readme_shows(capsys):
    assert main(["show", "mnns", "3", "5", "2", "8"]) == 0
    assert capsys.readouterr().out.strip() in block("show")


def test_bench_figures_are_the_stored_ones():
    stored = json.loads((ROOT / "results/bench/bench.json").read_text())
    shown = dict(line.split() for line in block("bench").splitlines() if line.strip())
    assert len(shown) >= 8
    for name, value in shown.items():
        assert float(value.replace(",", "")) == pytest.approx(stored[name], rel=5e-3), name


def test_every_file_it_points_to_exists():
    log = (ROOT / "results/LOG.md").read_text(encoding="utf-8")
    for folder, text in ((ROOT, README), (ROOT / "results", log)):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (folder / target).exists(), target


def test_every_module_it_names_exists():
    places = [ROOT, ROOT / "tinylatent", *ROOT.glob("theory/*/*"), *ROOT.glob("tinylatent/lab/studies")]
    names = {*re.findall(r"`([\w/]+\.py)`", README)}
    assert len(names) > 5
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


COMMANDS = {re.split(r"  +", line.strip())[0] for line in re.findall(r"^    (tinylatent .*)", README, re.MULTILINE)}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_it_shows_are_understood(command, monkeypatch, tmp_path):
    """Each is read with all its flags, and not run; folders they name are those of a run that is not there."""
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)[1:]
    if "--start" in words:
        with pytest.raises(ValueError, match="runs/a holds no run"):
            parse([name, *words])
        at = words.index("--start")
        del words[at : at + 2]
    assert parse([name, *words])


def test_flags_it_names_exist(capsys):
    for recipe in ("mnns/cot2", "mnns/grpo"):
        with pytest.raises(SystemExit):
            parse(["run", recipe, "--help"])
    known = {*re.findall(r"--[\w.-]+", capsys.readouterr().out)}
    named = {*re.findall(r"--(?:task|method|model|training)\.[\w-]+", README)}
    assert len(named) > 5
    assert named <= known
