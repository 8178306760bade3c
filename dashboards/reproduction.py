"""A paper's rows as a page: the state of each, and our numbers beside the published ones. It needs no script."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dashboards.columns import Columns
from dashboards.page import Page, View, tiles_html, with_code
from sweeplab.ranking.reproduction import (
    DONE,
    NOT_RUN,
    Number,
    Reproduction,
    Row,
    Run,
    counts,
    printed_lines,
    protocol_lines,
    run_lines,
)
from sweeplab.records import number_of
from sweeplab.storage.files import write_atomically


def build_reproduction(found: Reproduction, path: Path) -> Path:
    """Write the page as one self-contained file; returns its path, whose folder is made if it is missing."""
    write_atomically(path, render_reproduction(found).encode(), durable=False)
    return path


def render_reproduction(found: Reproduction) -> str:
    """The page as text."""
    title = f"{found.title} · SweepLab"
    views = [_overview(found), *(_row_view(row) for row in found.rows if _is_held(row)), *_left(found)]
    return Page(title, _header(found), views, _footer(found)).html(Columns(()))


def _is_held(row: Row) -> bool:
    return any(run.found for run in row.runs)


def _header(found: Reproduction) -> str:
    tiles = [(name, f"{count:,}", note) for name, count, note in counts(found)]
    printed = "".join(f'<p class="lead">{escape(line)}.</p>\n' for line in printed_lines(found.rows))
    return f"""<header>
<p class="kicker">A paper's experiments, here</p>
<h1>{escape(found.title)}</h1>
{printed}{tiles_html(tiles)}
</header>"""


def _footer(found: Reproduction) -> str:
    protocols = "".join(f"<p>{escape(line[0].upper() + line[1:])}.</p>\n" for line in protocol_lines(found))
    return f"<footer>\n{protocols}{NOTES}</footer>"


NOTES = """\
<p><b>Ours</b>: of a sweep its best trial in its best cleaned epoch, as its leaderboard has it; of methods with one
setting the last epoch; of victims the selected one. Intervals are Wilson's at 95 % and do not allow for the choice of
trial and epoch; of a change of accuracy the victim's is held fixed. <b>Miniature</b>: a run with less than half of its
script's pairs, classes or test images, or one of <code>--smoke</code>; its numbers say nothing of the paper's.
<b>Imported</b>: from a table that was measured elsewhere. <b>Differs</b>: from its script, in the field
that is named.</p>
<p>This page is one file and loads nothing from a network.</p>
"""


def _overview(found: Reproduction) -> View:
    rows = [
        (_link(row), f'<span class="state {_shade(row.state)}">{escape(row.state)}</span>', escape(row.shows))
        for row in found.rows
    ]
    table = _table("Rows", {"Row": "text", "State": "text", "Shows": "text"}, rows)
    return View("rows", "All rows", "All rows", "Tables, figures and ablations, in the paper's order.", table=table)


def _link(row: Row) -> str:
    target = f"{row.id}-section" if _is_held(row) else f"{row.id}-left"
    return f'<a href="#{escape(target)}">{escape(row.id)}</a>'


def _shade(state: str) -> str:
    """The class of a state's colour."""
    if state.startswith("running"):
        return "running"
    if state == DONE or (state.startswith(DONE) and "miniature" not in state):
        return "finished"
    return "" if state == NOT_RUN or not any(word in state for word in (" of ", DONE)) else "interrupted"


def _row_view(row: Row) -> View:
    runs = "".join(f"<li>{_run_html(run)}</li>" for run in row.runs)
    remarks = [("Chosen here", row.chosen), ("Not yet", row.lacks)]
    text = "".join(f"<p><b>{name}</b>: {with_code(value)}.</p>" for name, value in remarks if value)
    parts = [_numbers(row.numbers) if row.numbers else "", f'<ul class="runs">{runs}</ul>', text, _commands(row)]
    return View(row.id, f"{row.id}: {row.shows}", row.id, f"{row.state.capitalize()}.", table="".join(parts))


def _run_html(run: Run) -> str:
    name, _, rest = run_lines(run)[0].partition(": ")
    mark = f' <span class="mark">{escape(run.kind)}</span>' if run.kind else ""
    others = [line.strip() for line in run_lines(run)[1:] if line.strip() != run.kind]
    small = "".join(f"<small>{escape(line)}</small>" for line in others)
    return f"<b>{escape(name)}</b>: {escape(rest)}{mark}{small}"


def _commands(row: Row) -> str:
    return f'<pre class="result">{escape(chr(10).join(row.commands))}</pre>' if row.commands else ""


def _numbers(numbers: Sequence[Number]) -> str:
    heads = {"Setting": "text", "Quantity": "text", "Published": "", "Ours": "", "Place": "text"}
    return _table("Published numbers and ours", heads, [_cells(number) for number in numbers])


def _cells(number: Number) -> tuple[str, ...]:
    ours = f'<span class="none">{escape(number.missing)}</span>'
    if number.ours is not None:
        value, interval = number.ours_parts()
        later = " so far" if number.is_preliminary else ""
        ours = f"<strong>{escape(value)}</strong>{later}" + (f"<small>{escape(interval)}</small>" if interval else "")
    mark = f'<span class="mark">{escape(number.label)}</span>' if number.label else ""
    remark = f"<small>{escape(number.remark)}</small>" if number.remark else ""
    return (
        escape(number.setting),
        escape(number.quantity),
        f"<strong>{escape(number.published_in_words())}</strong>",
        ours + mark,
        escape(number.place) + remark,
    )


def _left(found: Reproduction) -> list[View]:
    """The rows of which the home holds nothing: what is published, and the commands."""
    rows = [row for row in found.rows if not _is_held(row)]
    if not rows:
        return []
    parts = "".join(
        f'<details id="{escape(row.id)}-left"><summary>{escape(row.id)}: {escape(row.shows)} ({escape(row.state)})'
        f"</summary>{_numbers(row.numbers) if row.numbers else ''}{_commands(row)}</details>"
        for row in rows
    )
    finding = (
        f"{number_of(len(rows), 'row')} of which this home holds nothing: the published numbers, and the commands."
    )
    return [View("left", "Not run", "Not run", finding, table=parts)]


def _table(caption: str, heads: dict[str, str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells, which is a list of cards where the page is narrow.

    Args:
        caption: for screen readers.
        heads: of the columns, with their class.
        rows: of cells.
    """
    head = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in heads.items())
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-head="{escape(name)}">{cell}</td>'
            for (name, kind), cell in zip(heads.items(), cells, strict=True)
        )
        + "</tr>"
        for cells in rows
    )
    return (
        f'<table class="cards"><caption class="unseen">{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>"
    )
