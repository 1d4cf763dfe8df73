"""What programs list on pages: every claim, every study with its stored runs, every published run and analysis."""

import inspect
from collections import Counter
from pathlib import Path
from typing import get_args

RESULTS = Path(__file__).resolve().parents[1] / "results"
THEORY = "theory/tinylatent_theory/claims"


def ledger(about: str | None, body: str) -> str:
    """A row for each claim: statement, verdict on record, whose it is, how it is checked, the function and its file."""
    from tinylatent_theory.claims.study import LEDGER  # not at the top: shape checks of tests hook in first

    rows = []
    for claim in sorted(LEDGER.values(), key=lambda each: _file(each.check)):
        file = _file(claim.check)
        words = (_cell(claim.statement), claim.recorded, claim.origin, claim.how)
        rows.append(f"| {' | '.join(words)} | `{claim.name}`, [{file}](../{THEORY}/{file}) |")
    return "\n".join(["| statement | verdict | origin | checked by | function |", "| - | - | - | - | - |", *rows, ""])


def origins(about: str | None, body: str) -> str:
    """A row for each origin: its verdicts on record, counted."""
    from tinylatent_theory.claims.ledger import Origin
    from tinylatent_theory.claims.study import LEDGER

    from tinylatent.lab.findings import Verdict

    counts = Counter((claim.origin, claim.recorded) for claim in LEDGER.values())
    verdicts, rows = get_args(Verdict), []
    for origin in (*get_args(Origin), "all"):
        found = [
            sum(n for (o, v), n in counts.items() if v == verdict and origin in (o, "all")) for verdict in verdicts
        ]
        rows.append(f"| {origin} | {' | '.join(map(str, found))} | {sum(found)} |")
    return "\n".join([f"| origin | {' | '.join(verdicts)} | all |", "| - |" + " -: |" * 5, *rows, ""])


def studies(about: str | None, body: str) -> str:
    """A row for each study: its question, command, runs, processor time, table and figure."""
    from tinylatent.core.files import read_lines
    from tinylatent.lab.study import STUDIES

    rows = []
    for name, study in STUDIES.loaded().items():
        command = f"`tinylatent {'claims' if name == 'claims' else f'reproduce {name}'} --profile full`"
        if not (RESULTS / name / "runs.jsonl").exists():
            stands = "under way" if (RESULTS / name / "unfinished.jsonl").exists() else "to be run"
            rows.append(f"| {_cell(study.question)} | {command} | | | {stands} |")
            continue
        runs = read_lines(RESULTS / name / "runs.jsonl")
        files = ", ".join(f"[{file}](../results/{name}/{file})" for file in ("table.md", "figure.png"))
        rows.append(f"| {_cell(study.question)} | {command} | {len(runs)} | {_minutes(runs)} | {files} |")
    head = "| question | command | runs | minutes | stored |"
    return "\n".join([head, "| - | - | -: | -: | - |", *rows, ""])


def published(about: str | None, body: str) -> str:
    """A row for each published run: what it is, and what it takes."""
    from tinylatent.lab.published import PUBLISHED, plan

    rows = []
    for name, recipe in PUBLISHED.items():
        found = plan(recipe)
        sizes = f"{found.steps:,} | {found.tokens / 1e9:.2f} | {found.memory / 1e9:.0f}"
        rows.append(f"| `{name}` | {_cell(recipe.title)} | {recipe.shape} | {recipe.before or ''} | {sizes} |")
    head = "| recipe | what | model | starts from | steps | billion tokens | GB |"
    return "\n".join([head, "| - | - | - | - | -: | -: | -: |", *rows, ""])


def analyses(about: str | None, body: str) -> str:
    """A row for each published analysis: what it looks into, and what it takes."""
    from tinylatent.lab.published_lenses import LENSED, plan

    rows = []
    for name, recipe in LENSED.items():
        found = plan(recipe)
        sizes = f"{recipe.prompts} | {found.passes:,} | {found.operations / 1e15:.0f} | {found.memory / 1e9:.0f}"
        rows.append(f"| `{name}` | {_cell(recipe.title)} | {sizes} |")
    head = "| analysis | what | prompts | passes of a layer | PFLOP | GB |"
    return "\n".join([head, "| - | - | -: | -: | -: | -: |", *rows, ""])


def _minutes(runs: list[dict]) -> str:
    """Minutes of one core that stored runs took to train, or to be checked; nothing where it was not written down."""
    seconds = sum(run["cost"]["training_seconds"] if "cost" in run else run.get("seconds", 0.0) for run in runs)
    return f"{seconds / 60:.0f}" if seconds else ""


def _file(check) -> str:
    """The name of the file that a function stands in."""
    return Path(inspect.getsourcefile(check)).name


def _cell(text: str) -> str:
    """Text that holds no column's end and no mark-up."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "\\<")
