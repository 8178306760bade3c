"""The numbers that the papers state, from published.csv: each with its place, and which run of ours measures it."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """One number of a paper."""

    row: str
    """Of `papers.ROWS`."""
    setting: str
    quantity: str
    """`change` is that of the accuracy of the best state with an ASR of at most 5 %, relative to the victim's."""
    published: str
    """As it is printed; with `~` where the text says about, two ends with `..` between them where it gives a range."""
    unit: str
    """`%`, `points` (of percent), or empty."""
    place: str
    """Table, figure or section; the authors' data or code, and secondary sources, are named as such."""
    remark: str
    run: str
    """The sweep or victim that measures it here; `A - B`: the difference of two; empty: none."""
    of: str
    """Which state of it: `victim`, `first epoch` of a victim, `best` (of the best trial the best cleaned epoch), `only`
    (the last epoch of the only trial), `all` (over all trials); `page`: it is read off the row's page; empty: the row's
    last command measures it."""

    @property
    def runs(self) -> list[str]:
        """The sweeps or victims that `run` names."""
        return self.run.split(" - ") if self.run else []


@cache
def published_numbers() -> tuple[Published, ...]:
    """All of them, in the order of the papers' rows."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Published(**line) for line in csv.DictReader(file))
