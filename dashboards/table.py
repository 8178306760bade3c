"""The leaderboard as an HTML table that sorts by any column."""

from html import escape

import pandas as pd

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard, bound_text, short_value

MOST_ROWS = 500
"""Rows in the page, from the top of the leaderboard."""

_HEADINGS = {
    "rank": ("Rank", "1 is best"),
    "trial": ("Trial", "number in the sweep"),
    "state": ("State", ""),
    "retention": (
        "Retention",
        "accuracy of the best cleaned epoch / accuracy of the victim; 95 % interval below",
    ),
    "accuracy": ("Accuracy", "of the best cleaned epoch, all test images"),
    "asr": ("ASR", "of the best cleaned epoch, all triggered images"),
    "certified": ("Certified", "the upper bound of the ASR, for all points together, lies below the ceiling"),
    "epoch": ("Epoch", "best cleaned epoch / last evaluated epoch"),
    "min_asr": ("Lowest ASR", "over all epochs"),
    "accuracy_report": ("Accuracy, other half", "on the images that did not choose the epoch"),
    "asr_report": ("ASR, other half", "on the triggered copies of the images that did not choose the epoch"),
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
    certified = sum(row.certified for row in leaderboard.rows)
    return (
        f"{which}, best first; {certified:,} cleaned trial{'s are' if certified != 1 else ' is'} certified: the upper "
        f"bound of the ASR, {bound_text(leaderboard)}, lies below {style.ceiling_text(leaderboard.asr_ceiling)} too."
    )


def draw_table(frame: pd.DataFrame, *, caption: str) -> str:
    """HTML of the table; every text from outside is escaped.

    Args:
        frame: of `leaderboard_table`.
        caption: for screen readers.
    """
    params = [column for column in frame.columns if column.startswith("params.")]
    shown = [name for name in _HEADINGS if name not in frame or name in _ALWAYS or frame[name].notna().any()]
    split = shown.index("min_asr") + 1
    columns = [*shown[:split], *params, *shown[split:]]
    head = "".join(_heading(column) for column in columns)
    body = "\n".join(_row(dict(zip(frame.columns, values, strict=True)), columns) for values in frame.to_numpy())
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="sortable"><caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


_ALWAYS = ("rank", "trial", "state", "retention", "accuracy", "asr", "certified", "epoch", "min_asr")
_TEXT = ("state", "certified")


def _heading(column: str) -> str:
    name = column.removeprefix("params.")
    text, hint = (name, "searched parameter") if column.startswith("params.") else _HEADINGS[column]
    kind = ' class="text"' if column in _TEXT else ' class="param"' if column.startswith("params.") else ""
    order = "ascending" if column == "rank" else "none"
    title = f' title="{escape(hint)}"' if hint else ""
    # A long name may break after each underscore.
    broken = escape(text).replace("_", "_<wbr>")
    return f'<th scope="col" aria-sort="{order}"{kind}><button type="button"{title}>{broken}</button></th>'


def _row(fields: dict[str, object], columns: list[str]) -> str:
    cells = "".join(_cell(column, fields) for column in columns)
    best = ' class="best"' if fields["rank"] == 1 and fields["feasible"] else ""
    return f"<tr{best}>{cells}</tr>"


def _cell(column: str, fields: dict[str, object]) -> str:
    value = fields[column]
    if column == "trial":
        return f'<th scope="row" data-sort="{value}">{value}</th>'
    if column == "state":
        return f'<td class="text"><span class="state {escape(str(value))}">{escape(str(value))}</span></td>'
    if column == "certified":
        if not fields["feasible"]:
            return '<td class="text" data-sort="2">–</td>'
        word = "✓ yes" if value else "no"
        return f'<td class="text" data-sort="{0 if value else 1}">{word}</td>'
    if column == "epoch":
        last = "" if fields["epochs"] is None else f"<small> of {fields['epochs']:g}</small>"
        return f"<td{_sort(value)}>{'–' if value is None else f'{value:g}'}{last}</td>"
    if column == "retention":
        low, high = fields["retention_low"], fields["retention_high"]
        ends = ""
        if isinstance(low, float) and isinstance(high, float):
            ends = f"<small>{100 * low:.1f}–{100 * high:.1f}</small>"
        return f"<td{_sort(value)}><strong>{_percent(value)}</strong>{ends}</td>"
    if column in ("accuracy", "asr", "min_asr", "accuracy_report", "asr_report"):
        return f"<td{_sort(value)}>{_percent(value)}</td>"
    if column == "seconds":
        return f"<td{_sort(value)}>{duration(value) if isinstance(value, (int, float)) else '–'}</td>"
    if column.startswith("params."):
        full = "" if value is None else f' title="{escape(str(value))}"'
        return f'<td class="param"{_sort(value)}{full}>{escape(short_value(value))}</td>'
    return f"<td{_sort(value)}>{escape(str(value))}</td>"


def _sort(value: object) -> str:
    """The attribute that the page sorts by; missing values have none and stay last."""
    return "" if value is None else f' data-sort="{escape(str(value))}"'


def _percent(value: object) -> str:
    return style.percent(value if isinstance(value, float) else None)


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f}\u00a0s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes}\u00a0min"
    return f"{minutes // 60:,}\u00a0h {minutes % 60:02d}\u00a0min"
