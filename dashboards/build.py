"""The report of a sweep: every view in one HTML file that needs no network."""

import base64
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboards import style
from dashboards.curves import curve_points, describe_curves, draw_curves
from dashboards.parameters import describe_parameters, draw_parameters, parameter_points
from dashboards.table import describe_table, draw_table, duration, leaderboard_table
from dashboards.trade_off import describe_trade_off, draw_trade_off, trade_off_points
from dashboards.trajectories import describe_trajectories, draw_trajectories, trajectory_points
from sweeplab.ranking.leaderboard import Leaderboard, bound_text
from sweeplab.records import SweepRecord
from sweeplab.storage.files import write_atomically


def build_page(sweep: SweepRecord, leaderboard: Leaderboard, path: Path) -> Path:
    """Write the report of a sweep as one self-contained file; a reader never sees half of it.

    Args:
        sweep: the ledger's record.
        leaderboard: of the same sweep.
        path: file to write; its folder is made if it is missing.

    Returns:
        The path itself.
    """
    write_atomically(path, render_page(sweep, leaderboard).encode())
    return path


def render_page(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    """The report as text."""
    sections = [
        _trade_off_section(sweep, leaderboard),
        _trajectories_section(sweep, leaderboard),
        _parameters_section(sweep, leaderboard),
        *_curves_section(sweep, leaderboard),
        _table_section(leaderboard),
    ]
    views = "\n".join(sections)
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
<title>{escape(sweep.name)} · SweepLab report</title>
<style>{look}</style>
</head>
<body>
{_header(sweep, leaderboard)}
<main>
<noscript><p class="empty">The charts need JavaScript; the leaderboard below does not.</p></noscript>
{views}
</main>
{_footer(sweep, leaderboard)}
{embedded}
</body>
</html>
"""


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


def _header(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    states = Counter(trial.state for trial in sweep.trials)
    feasible = sum(row.feasible for row in leaderboard.rows)
    certified = sum(row.certified for row in leaderboard.rows)
    others = [f"{states[state]:,} {state}" for state in ("running", "pruned", "failed", "waiting") if states[state]]
    epochs = sum(len(trial.points) for trial in sweep.trials)
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
            ", ".join(others) or f"{epochs:,} evaluated states",
        ),
    ]
    facts = [
        ("Method", sweep.method),
        (
            "Victim",
            f"{sweep.victim_name}, epoch {sweep.victim_epoch:g}" if sweep.victim_epoch else sweep.victim_name,
        ),
        ("Target label", sweep.target),
        ("Epochs a trial", f"{sweep.epochs:,}"),
        ("Protocol", sweep.protocol),
        (
            "Test images",
            f"{sweep.victim.accuracy_n:,} clean, {sweep.victim.asr_n:,} triggered"
            if sweep.victim.is_counted
            else "not known",
        ),
        ("Time in trials", duration(sum(trial.seconds for trial in sweep.trials))),
        ("Digest", sweep.digest),
    ]
    tile_html = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{value}</dd><dd class="note">{escape(note)}</dd></div>'
        for name, value, note in tiles
    )
    fact_html = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"""<header>
<p class="kicker">SweepLab report</p>
<h1>{escape(sweep.name)} <span class="state {escape(sweep.state)}">{escape(sweep.state)}</span></h1>
<p class="lead">{escape(best_sentence(leaderboard))}</p>
{_notes(leaderboard)}<dl class="tiles">{tile_html}</dl>
<dl class="facts">{fact_html}</dl>
</header>"""


def _notes(leaderboard: Leaderboard) -> str:
    return "".join(f'<p class="warning">Note: {escape(note)}.</p>\n' for note in leaderboard.notes)


def _lowest(leaderboard: Leaderboard) -> float | None:
    return min((row.min_asr for row in leaderboard.rows if row.min_asr is not None), default=None)


def _footer(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    latest = max((point.timestamp_ms for trial in sweep.trials for point in trial.points), default=0)
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


def _section(title: str, summary: str, content: str) -> str:
    return f"""<section aria-label="{escape(title)}">
<h2>{escape(title)}</h2>
<p class="summary">{escape(summary)}</p>
{content}
</section>"""


def _chart(name: str, title: str, figure: go.Figure) -> str:
    """A figure as data that the page's script draws, so that no script is made of user-supplied text."""
    data = figure.to_json().replace("<", "\\u003c")
    height = int(figure.layout.height)
    config = {
        **style.CONFIG,
        "toImageButtonOptions": {**style.CONFIG["toImageButtonOptions"], "filename": name},
    }
    return (
        f'<div class="chart" id="{name}" role="figure" aria-label="{escape(title)}" '
        f'style="min-height:{height}px" data-config="{escape(json.dumps(config))}"></div>\n'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )


def _empty(text: str) -> str:
    return f'<p class="empty">{escape(text)}</p>'


_NOTHING = "Nothing to draw until the first epoch is evaluated."


def _trade_off_section(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    title = "Accuracy against ASR, every epoch"
    frame = trade_off_points(sweep, leaderboard)
    if (frame["kind"] == "victim").all():
        return _section(title, "No epoch has been evaluated yet.", _empty(_NOTHING))
    figure = draw_trade_off(frame, asr_ceiling=sweep.asr_ceiling)
    return _section(title, describe_trade_off(frame, sweep.asr_ceiling), _chart("trade-off", title, figure))


def _trajectories_section(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    title = "Trajectories, markers growing with the epoch"
    frame = trajectory_points(sweep, leaderboard)
    if frame.empty:
        return _section(title, "No epoch has been evaluated yet.", _empty(_NOTHING))
    figure = draw_trajectories(frame, asr_ceiling=sweep.asr_ceiling)
    return _section(title, describe_trajectories(frame), _chart("trajectories", title, figure))


def _parameters_section(sweep: SweepRecord, leaderboard: Leaderboard) -> str:
    title = "Retention against each searched parameter"
    frame = parameter_points(sweep, leaderboard)
    if frame.empty:
        summary = "No parameter was searched." if not sweep.parameters else "No epoch has been evaluated yet."
        return _section(title, summary, _empty(_NOTHING if sweep.parameters else "Nothing to compare."))
    return _section(title, describe_parameters(frame), _chart("parameters", title, draw_parameters(frame)))


def _curves_section(sweep: SweepRecord, leaderboard: Leaderboard) -> list[str]:
    """None where the sweep recorded no curves."""
    frame = curve_points(sweep, leaderboard)
    if frame.empty:
        return []
    title = "Loss and its parts over the steps"
    return [_section(title, describe_curves(frame), _chart("curves", title, draw_curves(frame)))]


def _table_section(leaderboard: Leaderboard) -> str:
    title = "Leaderboard"
    if not leaderboard.rows:
        return _section(title, "The sweep has no trials yet.", _empty("No trials yet."))
    frame = leaderboard_table(leaderboard)
    return _section(title, describe_table(frame, leaderboard), draw_table(frame, caption="Leaderboard of all trials"))


def _asset(name: str) -> str:
    """The text of a file that lies beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
