"""The leaderboard as an HTML table that sorts by any column, and the small tables under the charts."""

from collections.abc import Mapping
from html import escape

import pandas as pd

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard, bound_text, column_words, parameter_words
from sweeplab.records import number_of

MOST_ROWS = 300
"""Rows in the page, from the top of the leaderboard."""

MOST_SMALL_ROWS = 24
"""Rows of a small table."""

_HEADINGS = {
    "rank": ("Rank", "1 is best"),
    "trial": ("Trial", "number in the sweep"),
    "state": ("State", ""),
    "retention": (
        "Retention %",
        "accuracy of the best cleaned epoch / accuracy of the victim; 95 % interval below",
    ),
    "accuracy": ("Accuracy %", "of the best cleaned epoch, all test images; 95 % interval below"),
    "asr": (
        "ASR %",
        "of the best cleaned epoch, all triggered images; 95 % interval below. ✓: certified, that is, its upper bound "
        "for all points together lies below the ceiling",
    ),
    "report": (
        "Other half %",
        "the epoch chosen on one half of the images: accuracy, and below ASR, on the half that had no part in choosing",
    ),
    "epoch": ("Epoch", "best cleaned epoch / last evaluated epoch"),
    "min_asr": ("Lowest ASR %", "over all epochs"),
    "seed": ("Seed", ""),
    "seconds": ("Time", "training and evaluation"),
}


def leaderboard_table(leaderboard: Leaderboard, most: int = MOST_ROWS) -> pd.DataFrame:
    """The first `most` rows of the leaderboard, one column a field; parameters as columns `params.NAME`."""
    names = list(dict.fromkeys(name for row in leaderboard.rows[:most] for name in row.params))
    records = []
    for row in leaderboard.rows[:most]:
        fields = {name: value for name, value in vars(row).items() if name != "params"}
        records.append(fields | {f"params.{name}": row.params.get(name) for name in names})
    return pd.DataFrame(records, dtype=object)


def describe_table(frame: pd.DataFrame, leaderboard: Leaderboard) -> str:
    """The table in one sentence."""
    total = len(leaderboard.rows)
    which = f"All {total:,} trials" if len(frame) == total else f"The first {len(frame):,} of {total:,} trials"
    if total == 1:
        which = "The only trial"
    certified = sum(row.certified for row in leaderboard.rows)
    return (
        f"{which}, best first; {certified:,} cleaned trial{'s are' if certified != 1 else ' is'} certified (✓): the "
        f"upper bound of the ASR, {bound_text(leaderboard)}, lies below {style.ceiling_text(leaderboard.asr_ceiling)} "
        "too."
    )


def draw_table(frame: pd.DataFrame, leaderboard: Leaderboard, *, caption: str) -> str:
    """HTML of the table and of its filter; every text from outside is escaped.

    Args:
        frame: of `leaderboard_table`.
        leaderboard: the same.
        caption: for screen readers.
    """
    params = [column for column in frame.columns if column.startswith("params.")]
    left_out = {
        "state": frame["state"].nunique() == 1 and frame["state"].iloc[0] == "finished",
        "seed": frame["seed"].nunique() == 1,
        "report": frame["accuracy_report"].isna().all(),
        "seconds": not frame["seconds"].any(),
    }
    shown = [name for name in _HEADINGS if not left_out.get(name)]
    split = shown.index("min_asr") + 1
    columns = [*shown[:split], *params, *shown[split:]]
    head = "".join(_heading(column) for column in columns)
    words = {f"params.{name}": texts for name, texts in parameter_words(leaderboard.rows).items()}
    body = "\n".join(
        _row(
            dict(zip(frame.columns, values, strict=True)) | {column: words[column][index] for column in params},
            columns,
            leaderboard,
        )
        for index, values in enumerate(frame.to_numpy())
    )
    return (
        '<p class="filter"><label>Filter <input type="search" placeholder="words, such as adamw certified" '
        f'aria-controls="leaderboard"></label> <output>{number_of(len(frame), "row")}</output></p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="sortable" id="leaderboard"><caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def small_table(
    frame: pd.DataFrame, heads: Mapping[str, str], *, most: int = MOST_SMALL_ROWS, asr_ceiling: float | None = None
) -> str:
    """The numbers behind a chart, folded away under it.

    Args:
        frame: one row a line; of more than `most` the first ones are shown, and how many there are is said.
        heads: heading of each column that is shown; one that ends in `%` holds fractions.
        most: rows.
        asr_ceiling: a fraction, from which the columns `asr` and `lowest_asr` are told; None: they are not.
    """
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads.values())
    cells = {
        column: _cells(frame[column].head(most), text, asr_ceiling if column in ("asr", "lowest_asr") else None)
        for column, text in heads.items()
    }
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cells[column][index])}</td>" for column in heads) + "</tr>"
        for index in range(min(most, len(frame)))
    )
    count = number_of(len(frame), "row") if len(frame) <= most else f"the first {most} of {len(frame):,} rows"
    return (
        f"<details><summary>Table: {count}</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></details>'
    )


def _cells(values: pd.Series, head: str, ceiling: float | None) -> list[str]:
    """The texts of a column, in one notation."""
    if head.endswith("%"):
        return [_percent(value, ceiling) for value in values]
    plain = [None if value is None or value != value else value for value in values.tolist()]
    return ["–" if value is None else text for value, text in zip(plain, column_words(plain), strict=True)]


_TEXT = ("state",)


def _heading(column: str) -> str:
    name = column.removeprefix("params.")
    text, hint = (name, "searched parameter") if column.startswith("params.") else _HEADINGS[column]
    kind = ' class="text"' if column in _TEXT else ' class="param"' if column.startswith("params.") else ""
    order = "ascending" if column == "rank" else "none"
    title = f' title="{escape(hint)}"' if hint else ""
    # A long name may break after each underscore.
    broken = escape(text).replace("_", "_<wbr>")
    return f'<th scope="col" aria-sort="{order}"{kind}><button type="button"{title}>{broken}</button></th>'


def _row(fields: dict[str, object], columns: list[str], leaderboard: Leaderboard) -> str:
    cells = "".join(_cell(column, fields, leaderboard) for column in columns)
    best = ' class="best"' if fields["rank"] == 1 and fields["feasible"] else ""
    return f'<tr{best} data-trial="{fields["trial"]}">{cells}</tr>'


def _cell(column: str, fields: dict[str, object], leaderboard: Leaderboard) -> str:
    ceiling = leaderboard.asr_ceiling
    if column.startswith("params."):
        return f'<td class="param">{escape(str(fields[column]))}</td>'
    if column == "report":
        accuracy, asr = fields["accuracy_report"], fields["asr_report"]
        return (
            f"<td>{_percent(accuracy)}<small>{_percent(asr, ceiling)}</small></td>"
            if accuracy is not None
            else "<td>–</td>"
        )
    value = fields[column]
    if column == "trial":
        return f'<th scope="row">{value}</th>'
    if column == "state":
        return f'<td class="text"><span class="state {escape(str(value))}">{escape(str(value))}</span></td>'
    if column == "epoch":
        last = "" if fields["epochs"] is None else f"<small>of {fields['epochs']:g}</small>"
        return f"<td>{'–' if value is None else f'{value:g}'}{last}</td>"
    if column in ("retention", "accuracy", "asr"):
        low, high = fields["asr_low" if column == "asr" else "retention_low"], fields[_HIGH[column]]
        ends = ""
        if isinstance(low, float) and isinstance(high, float):
            scale = leaderboard.victim.accuracy if column == "accuracy" else 1.0
            ends = f"<small>{100 * scale * low:.1f}–{100 * scale * high:.1f}</small>"
        text = _percent(value, ceiling if column == "asr" else None)
        text = f"<strong>{text}</strong>" if column == "retention" else text
        mark = ' <span title="certified">✓</span>' if column == "asr" and fields["certified"] else ""
        return f"<td>{text}{mark}{ends}</td>"
    if column == "min_asr":
        return f"<td>{_percent(value, ceiling)}</td>"
    if column == "seconds":
        if isinstance(value, float) and value:
            return f'<td data-sort="{value:.1f}">{style.duration(value)}</td>'
        return "<td>–</td>"  # not begun, or a table from elsewhere that does not say it
    return f"<td>{escape(str(value))}</td>"


_HIGH = {"retention": "retention_high", "accuracy": "retention_high", "asr": "asr_high"}


def _percent(value: object, ceiling: float | None = None) -> str:
    """In a column whose head says `%`; see `records.percent`."""
    known = value if isinstance(value, float) and value == value else None
    return style.percent(known, ceiling=ceiling).removesuffix("\u00a0%")
