"""The glossary is true of the code: each entry names a file that exists, and a word that stands in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").partition("\n## Elsewhere called")[0]
ENTRIES = [" ".join(entry.split()) for entry in re.findall(r"^- \*\*.*?(?=^- |^#|\Z)", LINES, flags=re.M | re.S)]
ENTRY = re.compile(r"- \*\*(?P<name>[^*]+)\*\* — .+\. \(`(?P<file>[^`]+)`: `(?P<word>[^`]+)`\)")


def test_it_has_entries():
    assert len(ENTRIES) > 40


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[4:40].replace("*", ""))
def test_an_entry_names_a_file_and_a_word_in_it(entry):
    found = ENTRY.fullmatch(entry)
    assert found, f"expected '- **word** — What it is. (`file`: `code`)', got {entry!r}"
    text = (ROOT / found["file"]).read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(found['word'])}\b", text), f"{found['file']} has no {found['word']!r}"
