"""The report of a sweep: every view in one HTML file that needs no network."""

import base64
import gzip
import hashlib
import json
import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from dashboards import style
from dashboards.columns import Columns
from dashboards.curves import curve_points, describe_curves, draw_curves
from dashboards.parameters import describe_parameters, draw_parameters, parameter_points
from dashboards.table import describe_table, draw_table, duration, leaderboard_table, small_table
from dashboards.trade_off import describe_trade_off, draw_trade_off, frontier_table, trade_off_points
from dashboards.trajectories import describe_trajectories, draw_trajectories, trajectory_points
from sweeplab.ranking.leaderboard import Leaderboard, bound_text, column_words, result_lines
from sweeplab.records import SweepRecord
from sweeplab.storage.files import write_atomically


@dataclass(frozen=True)
class Places:
    """Where else the sweep is to be seen; empty: nowhere."""

    mlflow_command: str = ""
    """Starts MLflow's server."""
    mlflow_address: str = ""
    """Of the sweep, once it runs."""


def build_page(sweep: SweepRecord, leaderboard: Leaderboard, path: Path, places: Places = Places()) -> Path:
    """Write the report of a sweep as one self-contained file; a reader never sees half of it.

    Args:
        sweep: the ledger's record.
        leaderboard: of the same sweep.
        path: file to write; its folder is made if it is missing.
        places: which the page links to.

    Returns:
        The path itself.
    """
    write_atomically(path, render_page(sweep, leaderboard, places).encode(), durable=False)
    return path


def render_page(sweep: SweepRecord, leaderboard: Leaderboard, places: Places = Places()) -> str:
    """The report as text."""
    columns = Columns((sweep.victim.accuracy_n, sweep.victim.asr_n))
    views = "\n".join(_section(view, columns) for view in views_of(sweep, leaderboard))
    scripts = [get_plotlyjs(), _asset("page.js")]
    look = _asset("page.css")
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    embedded = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{escape(sweep.name)} · SweepLab report</title>
<style>{look}</style>
</head>
<body data-state="{escape(sweep.state)}">
{_header(sweep, leaderboard, places)}
<main>
<noscript><p class="empty">The charts need JavaScript; the tables do not.</p></noscript>
{views}
</main>
{_footer(sweep, leaderboard)}
<p id="chosen" role="status" hidden></p>
<script type="text/plain" id="columns">{columns.packed()}</script>
<script type="text/plain" id="trials">{_packed(_trials(leaderboard))}</script>
<script type="application/json" id="dark">{json.dumps(style.DARK)}</script>
{embedded}
</body>
</html>
"""


@dataclass(frozen=True)
class View:
    """One section of the page."""

    name: str
    """Of the chart, in addresses and files."""
    title: str
    finding: str
    """What it shows of this sweep, in one sentence."""
    figure: go.Figure | None = None
    table: str = ""
    """HTML under the chart."""
    missing: str = ""
    """Why there is no chart, and what makes one."""


def views_of(sweep: SweepRecord, leaderboard: Leaderboard) -> list[View]:
    """All sections, in the order of the page."""
    return [
        _trade_off_view(sweep, leaderboard),
        _leaderboard_view(leaderboard),
        _trajectories_view(sweep, leaderboard),
        _parameters_view(sweep, leaderboard),
        _curves_view(sweep, leaderboard),
    ]


def _trials(leaderboard: Leaderboard) -> dict[str, object]:
    """What the page says of a trial under the pointer: by rank, its number, its worth and its setting in words."""
    rows = [row for row in leaderboard.rows if row.epochs is not None]
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    return {
        "trial": [row.trial for row in rows],
        "rank": [row.rank for row in rows],
        "worth": [
            f"keeps {style.percent(row.retention)}"
            if row.retention is not None
            else f"lowest ASR {style.percent(row.min_asr)}"
            for row in rows
        ],
        "names": names,
        "words": [column_words([row.params.get(name) for row in rows]) for name in names],
    }


def _packed(value: object) -> str:
    """JSON as text that is short and holds no markup."""
    content = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def best_sentence(leaderboard: Leaderboard) -> str:
    """The sweep's result in one sentence."""
    ceiling = style.ceiling_text(leaderboard.asr_ceiling)
    if not leaderboard.rows or leaderboard.rows[0].min_asr is None:
        return "No epoch has been evaluated yet."
    best = leaderboard.rows[0]
    if best.accuracy is None or best.asr is None or best.epoch is None:
        lowest = style.percent(best.min_asr)
        return f"No trial lies below {ceiling} ASR; trial {best.trial} comes closest with {lowest}."
    bound = f", but its upper bound, {bound_text(leaderboard)}, does not lie below {ceiling}"
    if best.certified:
        bound = f", and its upper bound, {bound_text(leaderboard)}, lies below {ceiling} too"
    elif best.retention_low is None:
        bound = ", which is not certified, as no counts of images are known"
    if not leaderboard.has_backdoor:
        bound = ""  # the notes say why
    sentence = (
        f"Trial {best.trial} is best: at epoch {best.epoch:g} it keeps {style.percent(best.retention)} "
        f"of the victim's accuracy ({style.percent(best.accuracy)} of "
        f"{style.percent(leaderboard.victim.accuracy)}) at {style.percent(best.asr, 2)} ASR{bound}."
    )
    if best.accuracy_report is not None and best.asr_report is not None:
        sentence += (
            f" With the epoch chosen on one half of the images, the other half shows "
            f"{style.percent(best.accuracy_report)} accuracy at {style.percent(best.asr_report, 2)} ASR."
        )
    return sentence


def _header(sweep: SweepRecord, leaderboard: Leaderboard, places: Places) -> str:
    states = Counter(row.state for row in leaderboard.rows)
    feasible = sum(row.feasible for row in leaderboard.rows)
    certified = sum(row.certified for row in leaderboard.rows)
    others = [f"{states[state]:,} {state}" for state in ("running", "pruned", "failed", "waiting") if states[state]]
    epochs = leaderboard.num_choices
    best = leaderboard.rows[0] if leaderboard.rows and leaderboard.rows[0].feasible else None
    interval = ""
    if best and best.retention_low is not None and best.retention_high is not None:
        interval = f"95 % interval {100 * best.retention_low:.1f}–{100 * best.retention_high:.1f}"
    ceiling = style.ceiling_text(sweep.asr_ceiling)
    tiles = [
        (
            "Best retention",
            style.percent(best.retention if best else None),
            interval or f"no epoch below {ceiling} ASR",
        ),
        (
            "At ASR",
            style.percent(best.asr if best else _lowest(leaderboard), 2),
            f"ceiling {ceiling}" if best else f"the lowest; ceiling {ceiling}",
        ),
        (
            "Victim",
            style.percent(sweep.victim.accuracy),
            f"accuracy, at {style.percent(sweep.victim.asr)} ASR",
        ),
        ("Cleaned trials", f"{feasible:,}", f"{certified:,} certified"),
        (
            "Finished trials",
            f"{states['finished']:,}<small> of {max(sweep.planned_trials, len(sweep.trials)):,}</small>",
            ", ".join([*others, f"{epochs:,} evaluated epochs"]),
        ),
    ]
    origin = sweep.origin
    trained = f", trained with {origin.objective}" if origin.objective else ""
    facts = [
        ("Attack", origin.attack),
        ("Poison rate", f"{100 * origin.poison_rate:g}\u00a0% of the pairs" if origin.poison_rate is not None else ""),
        ("Target label", sweep.target),
        (
            "Victim",
            (f"{sweep.victim_name}, epoch {sweep.victim_epoch:g}" if sweep.victim_epoch else sweep.victim_name)
            + trained,
        ),
        ("Method", sweep.method),
        ("Epochs a trial", f"{sweep.epochs:,}"),
        (
            "Test images",
            f"{sweep.victim.accuracy_n:,} clean, {sweep.victim.asr_n:,} triggered"
            if sweep.victim.is_counted
            else "not known",
        ),
        ("Time in trials", duration(sum(row.seconds for row in leaderboard.rows))),
        ("Script", origin.script),
        ("Seed", "" if origin.seed is None else str(origin.seed)),
        ("Protocol", sweep.protocol),
        ("Digest", sweep.digest),
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in origin.versions if version != "not installed" and name != "machine"
    )
    tile_html = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{value}</dd><dd class="note">{escape(note)}</dd></div>'
        for name, value, note in tiles
    )
    fact_html = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    if versions:
        fact_html += f'<div class="whole"><dt>Versions</dt><dd>{escape(versions)}</dd></div>'
    return f"""<header>
<p class="kicker">SweepLab report</p>
<h1>{escape(sweep.name)} <span class="state {escape(sweep.state)}">{escape(sweep.state)}</span></h1>
<p class="lead">{escape(best_sentence(leaderboard))}</p>
{_notes(leaderboard)}<dl class="tiles">{tile_html}</dl>
{_result(sweep, leaderboard, places)}<dl class="facts">{fact_html}</dl>
</header>"""


def _result(sweep: SweepRecord, leaderboard: Leaderboard, places: Places) -> str:
    """Where the winner's weights are and the commands that measure them and take them away, or what came closest; where
    MLflow shows the sweep."""
    lines = [escape(line) for line in result_lines(leaderboard)]
    winner, script = leaderboard.winner, sweep.origin.script
    if winner is not None and winner.checkpoint is not None and script.endswith(".py"):
        weights = shlex.quote(winner.checkpoint)
        lines.append(escape(f"        sweeplab evaluate {weights} --script {shlex.quote(script)}"))
    if places.mlflow_address:
        address = escape(places.mlflow_address)
        lines += [f"MLflow: {escape(places.mlflow_command)}", f'        then <a href="{address}">{address}</a>']
    text = "\n".join(lines)
    return f'<pre class="result">{text}</pre>\n' if lines else ""


def _notes(leaderboard: Leaderboard) -> str:
    return "".join(f'<p class="warning">Note: {escape(note)}.</p>\n' for note in leaderboard.notes)


def _lowest(leaderboard: Leaderboard) -> float | None:
    return min((row.min_asr for row in leaderboard.rows if row.min_asr is not None), default=None)


def _footer(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    latest = max((trial.last_ms for trial in sweep.trials), default=0)
    when = f"Last epoch measured {datetime.fromtimestamp(latest / 1000, UTC):%Y-%m-%d %H:%M} UTC. " if latest else ""
    ceiling = style.ceiling_text(sweep.asr_ceiling)
    bound = escape(bound_text(leaderboard))
    return f"""<footer>
<p><b>ASR</b>, attack success rate: share of triggered images that are classified as the target label;
of targeted images without a trigger, the share that is classified as its own adversarial class (PSR).
<b>Accuracy</b>: top-1 zero-shot accuracy on clean images. <b>Cleaned</b>: an epoch with an ASR below
{ceiling}. <b>Retention</b>: accuracy of a trial's best cleaned epoch over the accuracy of the victim, on the
same images; its interval is Wilson's for that accuracy, with the victim's held fixed. <b>Certified</b>: the one-sided
Clopper-Pearson upper bound of that epoch's ASR, {bound}, lies below {ceiling} too; so it holds however the epoch was
chosen among them. <b>Other half</b>: the best cleaned epoch is chosen on one half of the test images and their
triggered copies, and measured on the other.</p>
<p>{when}This page is one file and loads nothing from a network.</p>
</footer>"""


def _section(view: View, columns: Columns) -> str:
    content = _chart(view, columns) if view.figure is not None else ""
    if view.missing:
        content = f'<p class="empty">{escape(view.missing)}</p>'
    return f"""<section aria-label="{escape(view.title)}" id="{view.name}-section">
<h2>{escape(view.title)}</h2>
<p class="summary">{escape(view.finding)}</p>
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
        f'<div class="chart" id="{view.name}" role="figure" aria-label="{escape(view.title)}" '
        f'style="min-height:{height}px" data-config="{escape(json.dumps(config))}"></div>\n'
        f'<script type="application/json" id="{view.name}-data">{data}</script>\n'
    )


_NOTHING = "Nothing to draw until the first epoch is evaluated."
_NOT_YET = "No epoch has been evaluated yet."


def _trade_off_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    name, title = "trade-off", "Accuracy against ASR, every epoch"
    frame = trade_off_points(sweep, leaderboard)
    if (frame["kind"] == "victim").all():
        return View(name, title, _NOT_YET, missing=_NOTHING)
    figure = draw_trade_off(frame, asr_ceiling=sweep.asr_ceiling)
    heads = {"asr": "At or below ASR %", "accuracy": "Best accuracy %", "trial": "Trial", "epoch": "Epoch"}
    table = small_table(frontier_table(frame), heads)
    return View(name, title, describe_trade_off(frame, sweep.asr_ceiling), figure, table)


def _trajectories_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    name, title = "trajectories", "Trajectories, markers growing with the epoch"
    frame = trajectory_points(sweep, leaderboard)
    if frame.empty:
        return View(name, title, _NOT_YET, missing=_NOTHING)
    figure = draw_trajectories(frame, asr_ceiling=sweep.asr_ceiling)
    heads = {"trial": "Trial", "epoch": "Epoch", "accuracy": "Accuracy %", "asr": "ASR %"}
    return View(name, title, describe_trajectories(frame), figure, small_table(frame, heads))


def _parameters_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    name, title = "parameters", "Retention against each searched parameter"
    frame = parameter_points(sweep, leaderboard)
    if frame.empty:
        finding = "No parameter was searched." if not sweep.parameters else _NOT_YET
        return View(name, title, finding, missing=_NOTHING if sweep.parameters else "Nothing to compare.")
    return View(name, title, describe_parameters(frame), draw_parameters(frame))


def _curves_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    name, title = "curves", "Loss and its parts over the steps"
    frame = curve_points(sweep, leaderboard)
    if frame.empty:
        return View(
            name,
            title,
            "The sweep recorded no losses.",
            missing="A sweep with log_every=10 records the loss and its parts at every 10th step.",
        )
    return View(name, title, describe_curves(frame), draw_curves(frame))


def _leaderboard_view(leaderboard: Leaderboard) -> View:
    name, title = "leaderboard", "Leaderboard"
    if not leaderboard.rows:
        return View(name, title, "The sweep has no trials yet.", missing="No trials yet.")
    frame = leaderboard_table(leaderboard)
    table = draw_table(frame, leaderboard, caption="Leaderboard of all trials")
    return View(name, title, describe_table(frame, leaderboard), table=table)


def _asset(name: str) -> str:
    """The text of a file that lies beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
