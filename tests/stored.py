"""Stores of runs that were never trained: their records are made by hand."""

from records import record_of

from tinylatent.core.files import write_json
from tinylatent.lab.experiment import Experiment


def put(results, run, percent=None, step=None, folder=None, **fields):
    """A run in a store: begun, with some steps done, or finished, with this percentage right; returns its folder.

    Args:
        results: the results folder.
        run: what to put there.
        percent: right answers of each key, for a finished run.
        step: the last step in its metrics; a line that is not whole follows.
        folder: where else to put it.
        fields: fields of the record that are otherwise.
    """
    folder = folder or results / "runs" / run.identity
    folder.mkdir(parents=True)
    if isinstance(run, Experiment):
        write_json(folder / "config.json", run.to_json())
    if step is not None:
        (folder / "metrics.jsonl").write_text(f'{{"step": {step}, "loss": 0.5, "problems_per_s": 640.0}}\n{{"st')
    if percent is not None:
        write_json(folder / "result.json", record_of(run, percent, **fields).to_json())
    return folder
