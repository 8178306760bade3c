"""docs/reference.md is what the docstrings say, and names every class of the tuples."""

import runpy
from pathlib import Path

from sweeplab.attacks import ATTACKS
from sweeplab.cleaning import METHODS
from sweeplab.data import PAIR_SOURCES
from sweeplab.pretraining import OBJECTIVES

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
