import re
from pathlib import Path

from sweeplab.data import PAIR_SOURCES
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.data.labelled_sources import LABELLED_SOURCES

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_examples_of_pairs_are_valid_and_name_every_source_of_files():
    section = GUIDE.read_text().split("\n## Pairs\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec("\n".join(blocks), {})
    named = {source.__name__ for source in PAIR_SOURCES if source.__name__ in section}
    assert named == {source.__name__ for source in PAIR_SOURCES} - {FruitStall.__name__}


def test_every_layout_of_a_test_set_is_told():
    section = GUIDE.read_text().split("\n## Test sets\n")[1].split("\n## ")[0]
    named = {source.__name__ for source in LABELLED_SOURCES if f"`{source.__name__}(" in section}
    assert named == {source.__name__ for source in LABELLED_SOURCES} - {FruitStallTest.__name__}
