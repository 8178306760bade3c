import re
from pathlib import Path

from sweeplab.data import PAIR_SOURCES
from sweeplab.data.fruit_stall import FruitStall

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_examples_of_pairs_are_valid_and_name_every_source_of_files():
    section = GUIDE.read_text().split("\n## Pairs\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec("\n".join(blocks), {})
    named = {source.__name__ for source in PAIR_SOURCES if source.__name__ in section}
    assert named == {source.__name__ for source in PAIR_SOURCES} - {FruitStall.__name__}
