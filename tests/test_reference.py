"""The docs say what the code says: the reference, the messages on the page on trouble, the README's sweep."""

import re
import runpy
from pathlib import Path

from sweeplab.attacks import ATTACKS
from sweeplab.cleaning import METHODS
from sweeplab.cli import load_script
from sweeplab.commands.estimate import plan
from sweeplab.data import PAIR_SOURCES
from sweeplab.experiment import CleaningSweep
from sweeplab.pretraining import OBJECTIVES
from sweeplab.ranking.words import words

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_is_up_to_date():
    """`just reference` writes it anew."""
    made = runpy.run_path(str(DOCS / "make_reference.py"))["markdown"]()
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == made


def test_every_member_has_its_place_and_says_what_it_is():
    sections = (DOCS / "reference.md").read_text(encoding="utf-8").split("\n### ")
    text = {section.partition("\n")[0]: section for section in sections[1:]}
    for member in (*ATTACKS, *METHODS, *OBJECTIVES, *PAIR_SOURCES):
        said = text[member.__name__]
        assert f"from {member.__module__} import {member.__name__}" in said
        assert all(f"| `{name}` |" in said for name in member.model_fields if name != "kind")
        assert len(said.split("\n\n")[2]) > 20, member


def test_messages_of_the_page_on_trouble_are_those_of_the_code():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "sweeplab").rglob("*.py"))
    lines = [line for line in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines() if "| " in line]
    quoted = [text for line in lines for text in re.findall("`([^`]+)`", line.split("|")[1])]
    assert len(quoted) > 10
    assert [text for text in quoted if text not in sources] == []


def test_the_sweep_of_the_readme_is_one(tmp_path: Path):
    """The block is a script as it stands: it plans without data."""
    (block,) = re.findall("```python\n(.*?)```", (DOCS.parent / "README.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "clean_mine.py").write_text(block)
    (sweep,) = load_script(tmp_path / "clean_mine.py")
    assert isinstance(sweep, CleaningSweep)
    assert (sweep.name, sweep.search.trials) == ("clean-mine", 64)
    assert "64, 20 epochs each" in "\n".join(plan(sweep))


def test_the_words_of_the_readme_are_those_of_the_page():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Words\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", table, re.M)
    assert dict(rows) == {"word": "means", **words("5 %")}


def test_the_result_at_the_head_of_the_readme_is_that_of_its_table():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (victim,) = re.findall(r"\| victim: .* \| .* \| ([\d.]+ %) \|", text)
    ((kept, asr),) = re.findall(r"\| best of 12 trials .*, ([\d.]+ %) retention \| .* \| ([\d.]+ %) \|", text)
    head = " ".join(text.split("```")[0].split())
    assert f"a victim of {victim} ASR is cleaned to {asr} and keeps {kept} of its accuracy" in head
