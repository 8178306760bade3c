"""The page that all reports are made of: a header, views with their charts and tables, a footer, in one HTML file."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from dashboards import style
from dashboards.columns import Columns
from sweeplab.ranking.words import words


@dataclass(frozen=True)
class View:
    """One section of the page."""

    name: str
    """Of the chart, in addresses and files."""
    title: str
    short: str
    """The title in the list of all views."""
    finding: str
    """What it shows of this sweep, in one sentence."""
    figure: go.Figure | None = None
    table: str = ""
    """HTML under the chart."""
    least_width: int = 0
    """Pixels; where the page is narrower, the chart is moved under it."""
    missing: str = ""
    """Why there is no chart, and what makes one."""
    rows: pd.DataFrame | None = None
    """What the chart shows, where `sweeplab compare --json` gives it too."""


@dataclass(frozen=True)
class Page:
    """What a report shows."""

    title: str
    header: str
    """HTML."""
    views: Sequence[View]
    footer: str
    """HTML."""
    trials: Mapping[str, object] = field(default_factory=lambda: {"trial": []})
    """What is said of a trial under the pointer; see `page.js`."""
    state: str = "finished"
    """While it is `running`, an open page loads itself again."""

    def html(self, columns: Columns) -> str:
        """The page as text.

        Args:
            columns: keeps the numbers of the charts; empty.
        """
        views = "\n".join(_section(view, columns) for view in self.views)
        links = "".join(f'<a href="#{view.name}-section">{escape(view.short)}</a>' for view in self.views)
        has_charts = any(view.figure is not None for view in self.views)
        scripts, allowed = _scripts() if has_charts else ("", "'none'")  # tables need none
        policy = (
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
            "connect-src 'none'; base-uri 'none'; form-action 'none'"
        )
        data = (
            f'<script type="text/plain" id="columns">{columns.packed()}</script>\n'
            f'<script type="text/plain" id="trials">{_packed(self.trials)}</script>\n'
            f'<script type="application/json" id="dark">{json.dumps(style.DARK)}</script>\n'
        )
        embedded = data + scripts if has_charts else ""
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{escape(self.title)}</title>
<style>{_asset("page.css")}</style>
</head>
<body data-state="{escape(self.state)}">
{self.header}
<nav aria-label="Views">{links}</nav>
<main>
{NO_SCRIPT if has_charts else ""}
{views}
</main>
{self.footer}
<p id="chosen" role="status" hidden></p>
{embedded}
</body>
</html>
"""


def with_code(text: str) -> str:
    """A text as HTML, in which commands and names stand between back quotes."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", unbroken(text))


def unbroken(text: str) -> str:
    """A text as HTML, whose numbers and flags are not broken: behind a minus, as in 1.46e-02 and --smoke, or before
    a %."""
    joined = re.sub(r"(?<=\d) (?=%)", "\u00a0", escape(text))
    return re.sub(r"\b[\d.]+e-\d+\b|(?<![\w-])--[a-z-]+", r'<span class="number">\g<0></span>', joined)


def tiles_html(tiles: Sequence[tuple[str, str, str]]) -> str:
    """The figures at the head of a page.

    Args:
        tiles: name, value as HTML, and note of each.
    """
    cells = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{value}</dd><dd class="note">{unbroken(note)}</dd></div>'
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def words_html(ceiling: str) -> str:
    """What the words of a page mean, folded away.

    Args:
        ceiling: the ASR ceiling in words.
    """
    rows = "".join(f"<dt>{escape(word)}</dt><dd>{with_code(meaning)}</dd>" for word, meaning in words(ceiling).items())
    return f'<details class="words"><summary>What the words mean</summary><dl class="answers">{rows}</dl></details>\n'


NO_SCRIPT = '<noscript><p class="empty">The charts need JavaScript; the tables do not.</p></noscript>'


def _section(view: View, columns: Columns) -> str:
    content = _chart(view, columns) if view.figure is not None else ""
    if view.missing:
        content = f'<p class="empty">{with_code(view.missing)}</p>'
    return f"""<section aria-label="{escape(view.title)}" id="{view.name}-section">
<h2>{escape(view.title)}</h2>
<p class="summary">{with_code(view.finding)}</p>
{content}{view.table}
</section>"""


def _chart(view: View, columns: Columns) -> str:
    """A figure as data that the page's script draws, so that no script is made of user-supplied text."""
    assert view.figure is not None
    values = columns.figure(view.figure.to_plotly_json())
    data = json.dumps(values, separators=(",", ":"), allow_nan=False, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
    height = int(view.figure.layout.height)
    config = {
        **style.CONFIG,
        "toImageButtonOptions": {**style.CONFIG["toImageButtonOptions"], "filename": view.name},
    }
    return (
        f'<p class="legend" id="{view.name}-legend"></p>\n'
        f'<div class="moved"><div class="chart" id="{view.name}" role="figure" aria-label="{escape(view.title)}" '
        f'style="min-height:{height}px;min-width:{view.least_width}px" '
        f'data-config="{escape(json.dumps(config))}"></div></div>\n'
        f'<script type="application/json" id="{view.name}-data">{data}</script>\n'
    )


def _packed(value: object) -> str:
    """JSON as text that is short and holds no markup."""
    content = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _asset(name: str) -> str:
    """The text of a file that lies beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _scripts() -> tuple[str, str]:
    """Plotly and the page's own script as elements, and what the policy allows: them alone. Made once, of megabytes."""
    texts = [get_plotlyjs(), _asset("page.js")]
    allowed = " ".join(f"'sha256-{_sha256(text)}'" for text in texts)
    return "\n".join(f"<script>{text}</script>" for text in texts), allowed


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
