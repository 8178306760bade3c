"""The report of a sweep: every view in one HTML file that needs no network."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from dashboards import style
from dashboards.budget import budget_points, describe_budget, draw_budget
from dashboards.ceilings import ceiling_points, describe_ceilings, draw_ceilings
from dashboards.columns import Columns
from dashboards.curves import curve_points, describe_curves, draw_curves
from dashboards.gallery import describe_gallery, draw_gallery, gallery_table
from dashboards.image_by_image import compared_trials, describe_comparison, draw_comparison
from dashboards.importance import describe_importance, draw_importance, importance_table
from dashboards.page import Page, View, tiles_html, unbroken, with_code, words_html
from dashboards.pairs import describe_pair, draw_pair, most_telling_pair, pair_cells
from dashboards.parallel import describe_parallel, draw_parallel, parallel_points
from dashboards.parameters import describe_parameters, draw_parameters, parameter_points, value_table
from dashboards.pretraining import describe_pretraining, draw_pretraining, pretraining_points
from dashboards.pruning import describe_pruning, draw_pruning, pruned_trials
from dashboards.seeds import describe_seeds, draw_seeds, seed_points
from dashboards.table import describe_table, draw_table, leaderboard_table, small_table
from dashboards.timeline import attempt_bars, cost_table, describe_timeline, draw_timeline
from dashboards.trade_off import describe_trade_off, draw_trade_off, frontier_table, trade_off_points
from dashboards.trajectories import describe_trajectories, draw_trajectories, trajectory_points
from sweeplab.ranking.configurations import group_by_configuration
from sweeplab.ranking.costs import Attempt, Costs, costs_of
from sweeplab.ranking.leaderboard import (
    WHAT_NEXT,
    Leaderboard,
    LeaderboardRow,
    best_certified,
    bound_text,
    parameter_words,
    result_lines,
)
from sweeplab.ranking.next_steps import (
    THREE_SEEDS,
    by_record,
    more_trials,
    next_steps,
    run_anew,
    three_times_as_many,
    trials_for_importance,
    trials_setting,
)
from sweeplab.ranking.summary import ReadOutcomes
from sweeplab.records import OWN_CLASSIFIER, Point, SweepRecord, number_of
from sweeplab.storage.files import write_atomically


def _no_outcomes(trial: int, index: int) -> None:
    return None


@dataclass(frozen=True)
class Extras:
    """What the page shows that neither the sweep's record nor its leaderboard holds; empty: not known."""

    mlflow_command: str = ""
    """Starts MLflow's server; empty where one runs already."""
    mlflow_address: str = ""
    """Of the sweep, once it runs."""
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By question and parameter."""
    attempts: Sequence[Attempt] = ()
    costs: Costs | None = None
    until_ms: int = 0
    """The end of attempts that no event ends, milliseconds since 1970."""
    pretraining: Sequence[Point] = ()
    """Of the victim's training."""
    outcomes: ReadOutcomes = _no_outcomes
    gallery: Mapping[str, Any] | None = None
    """What `sweeplab report --gallery` has written."""


def build_page(sweep: SweepRecord, leaderboard: Leaderboard, path: Path, extras: Extras = Extras()) -> Path:
    """Write the report of a sweep as one self-contained file; a reader never sees half of it.

    Args:
        sweep: the ledger's record.
        leaderboard: of the same sweep.
        path: file to write; its folder is made if it is missing.
        extras: what else it shows.

    Returns:
        The path itself.
    """
    write_atomically(path, render_page(sweep, leaderboard, extras).encode(), durable=False)
    return path


def render_page(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras = Extras()) -> str:
    """The report as text."""
    begun = [row for row in leaderboard.rows if row.epochs is not None]
    page = Page(
        title=f"{sweep.name} · SweepLab report",
        header=_header(sweep, leaderboard, extras),
        views=views_of(sweep, leaderboard, extras),
        footer=_footer(sweep),
        trials=trials_of(begun, [row.trial for row in begun], sweep.asr_ceiling),
        state=sweep.state,
    )
    return page.html(Columns((sweep.victim.accuracy_n, sweep.victim.asr_n)))


def views_of(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras = Extras()) -> list[View]:
    """All sections, in the order of the page."""
    points = parameter_points(sweep, leaderboard)
    return [
        _trade_off_view(sweep, leaderboard),
        _leaderboard_view(leaderboard),
        _ceilings_view(sweep),
        _trajectories_view(sweep, leaderboard),
        _parameters_view(sweep, points),
        _importance_view(sweep, leaderboard, extras),
        _pair_view(sweep, points, extras),
        _parallel_view(points),
        _seeds_view(sweep, leaderboard),
        _gallery_view(sweep, leaderboard, extras),
        _comparison_view(sweep, leaderboard, extras),
        _budget_view(sweep),
        _pruning_view(sweep, leaderboard),
        _curves_view(sweep, leaderboard),
        _pretraining_view(sweep, extras),
        _timeline_view(sweep, extras),
    ]


def trials_of(rows: Sequence[LeaderboardRow], ids: Sequence[int], asr_ceiling: float | None) -> dict[str, object]:
    """What the page says of a trial under the pointer: its rank, its worth and its setting in words.

    Args:
        rows: of the leaderboard, or of several.
        ids: how the charts call each of them.
        asr_ceiling: a fraction; None: there is no trial.
    """
    words = parameter_words(rows)
    return {
        "trial": list(ids),
        "rank": [row.rank for row in rows],
        "worth": [
            f"keeps {style.percent(row.retention)}"
            if row.retention is not None
            else f"lowest ASR {style.percent(row.min_asr, ceiling=asr_ceiling)}"
            for row in rows
        ],
        "names": list(words),
        "words": list(words.values()),
    }


def best_sentence(leaderboard: Leaderboard) -> str:
    """The sweep's result in one sentence; before it, where the victim has no backdoor, another that says so."""
    result = _result_sentence(leaderboard)
    if not leaderboard.lacks_backdoor:
        return result
    own = style.percent(leaderboard.victim.asr, ceiling=leaderboard.asr_ceiling)
    return f"The victim has no backdoor to clean: its own ASR is {own}. {result}"


def _result_sentence(leaderboard: Leaderboard) -> str:
    asr_ceiling = leaderboard.asr_ceiling
    ceiling = style.ceiling_text(asr_ceiling)
    if not leaderboard.rows or leaderboard.rows[0].min_asr is None:
        return "No epoch has been evaluated yet."
    best = leaderboard.rows[0]
    if best.accuracy is None or best.asr is None or best.epoch is None:
        lowest = style.percent(best.min_asr, ceiling=asr_ceiling)
        return f"No trial lies below {ceiling} ASR; trial {best.trial} comes closest with {lowest}."
    bound = f", but its upper bound, {bound_text(leaderboard)}, does not lie below {ceiling}"
    if best.certified:
        bound = f", and its upper bound, {bound_text(leaderboard)}, lies below {ceiling} too"
    elif best.retention_low is None:
        bound = ", which is not certified, as no counts of images are known"
    if not leaderboard.has_backdoor:
        bound = ""  # the notes say why
    if certified := best_certified(leaderboard).replace(" %", "\u00a0%"):
        bound += f"; {certified}"
    which = f"Trial {best.trial} is best: at epoch {best.epoch:g} it"
    if leaderboard.lacks_backdoor:
        which = f"Trial {best.trial} at epoch {best.epoch:g}"
    sentence = (
        f"{which} keeps {style.percent(best.retention)} "
        f"of the victim's accuracy ({style.percent(best.accuracy)} of "
        f"{style.percent(leaderboard.victim.accuracy)}) at {style.percent(best.asr, ceiling=asr_ceiling)} ASR{bound}."
    )
    if best.accuracy_report is not None and best.asr_report is not None:
        rates = (
            f"{style.percent(best.accuracy_report)} accuracy at {style.percent(best.asr_report, ceiling=asr_ceiling)}"
        )
        sentence += f" With the epoch chosen on one half of the images, the other half shows {rates} ASR."
    return sentence + _over_seeds(leaderboard, best.configuration)


def _over_seeds(leaderboard: Leaderboard, configuration: str) -> str:
    """What the best setting keeps over its seeds, of which the best trial is the luckiest; empty with one seed."""
    row = next(row for row in group_by_configuration(leaderboard) if row.configuration == configuration)
    if row.measured < 2 or row.retention_mean is None:
        return ""
    worst = f"at worst {style.percent(row.retention_worst)}"
    if row.retention_worst is None:
        worst = f"over the {row.feasible} that were cleaned"
    mean = style.percent(row.retention_mean)
    return f" Over the {row.measured} seeds of its setting, the mean retention is {mean}, {worst}."


def _header(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> str:
    states = Counter(row.state for row in leaderboard.rows)
    cleaned = leaderboard.cleaned
    certified = "none can be certified: counts not known"
    if sweep.victim.is_counted:
        certified = f"{sum(row.certified for row in leaderboard.rows):,}\u00a0certified"
    others = [f"{states[state]:,} {state}" for state in ("running", "pruned", "failed", "waiting") if states[state]]
    epochs = leaderboard.num_choices
    best = leaderboard.rows[0] if leaderboard.rows and leaderboard.rows[0].feasible else None
    ceiling = style.ceiling_text(sweep.asr_ceiling)
    interval = f"no epoch below {ceiling} ASR"
    if best:
        interval = "no interval: counts not known"
        if best.retention_low is not None and best.retention_high is not None:
            interval = f"95 % interval {100 * best.retention_low:.1f}–{100 * best.retention_high:.1f}"
    if leaderboard.lacks_backdoor:
        interval = f"no backdoor to clean; {interval}"
    tiles = [
        (
            "Retention" if leaderboard.lacks_backdoor else "Best retention",
            style.percent(best.retention if best else None),
            interval,
        ),
        (
            "At ASR",
            style.percent(best.asr if best else _lowest(leaderboard), ceiling=sweep.asr_ceiling),
            f"ceiling {ceiling}" if best else f"the lowest; ceiling {ceiling}",
        ),
        (
            "Victim",
            style.percent(sweep.victim.accuracy),
            f"accuracy, at {style.percent(sweep.victim.asr, ceiling=sweep.asr_ceiling)} ASR",
        ),
        (
            f"Trials below {ceiling} ASR" if leaderboard.lacks_backdoor else "Cleaned trials",
            f"{cleaned.cleaned:,}<small> of {cleaned.trials:,}</small>",
            "; ".join(filter(None, [cleaned.destroyed(), certified])),
        ),
        (
            "Finished trials",
            f"{states['finished']:,}<small> of {max(sweep.planned_trials, len(sweep.trials)):,}</small>",
            ", ".join([*others, number_of(epochs, "evaluated epoch")]),
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
        ("Cleaning pairs", origin.cleaning_pairs),
        ("Poisons among them", "" if origin.cleaning_poisons is None else f"{origin.cleaning_poisons:,}"),
        ("Epochs a trial", f"{sweep.epochs:,}"),
        (
            "Test images",
            f"{sweep.victim.accuracy_n:,} clean, {sweep.victim.asr_n:,} triggered"
            if sweep.victim.is_counted
            else "not known",
        ),
        ("Script", origin.script or ("not recorded" if origin.has_spec else "")),
        ("Seed", "" if origin.seed is None else str(origin.seed)),
        ("Protocol", sweep.protocol),
        ("Digest", sweep.digest),
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in origin.versions if version != "not installed" and name != "machine"
    )
    fact_html = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    if versions:
        fact_html += f'<div class="whole"><dt>Versions</dt><dd>{escape(versions)}</dd></div>'
    return f"""<header>
<p class="kicker">SweepLab report</p>
<h1>{escape(sweep.name)} <span class="state {escape(sweep.state)}">{escape(sweep.state)}</span></h1>
<p class="lead">{unbroken(best_sentence(leaderboard))}</p>
{_notes(leaderboard)}{tiles_html(tiles)}
{_result(sweep, leaderboard, extras)}<dl class="facts">{fact_html}</dl>
{words_html(ceiling)}</header>"""


def _result(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> str:
    """The winner's setting, its weights, and the commands that measure them and take them away, or what came closest;
    what to try next; what it cost; where MLflow shows the sweep."""
    rows = _winner(sweep, leaderboard)
    if steps := next_steps(sweep, leaderboard):
        rows.append(("Try next", "<br>".join(map(with_code, steps))))
    rows.append(("Cost", escape(_cost(sweep, leaderboard, extras))))
    if extras.mlflow_address:
        address = escape(extras.mlflow_address)
        command = f"<code>{escape(extras.mlflow_command)}</code>, then " if extras.mlflow_command else ""
        rows.append(("MLflow", f'{command}<a href="{address}">{address}</a>'))
    return f'<dl class="answers">{"".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)}</dl>\n'


def _winner(sweep: SweepRecord, leaderboard: Leaderboard) -> list[tuple[str, str]]:
    """What names the winner, or what came closest: headings and HTML."""
    winner = leaderboard.winner
    if winner is None:
        lines = [with_code(line) for line in result_lines(leaderboard) if WHAT_NEXT not in line]
        return [("Closest", "<br>".join(lines))] if lines else []
    words, place = parameter_words(leaderboard.rows), leaderboard.rows.index(winner)
    setting = ", ".join(f"{name}\u00a0{words[name][place]}" for name in winner.params)
    what = "Most accurate" if leaderboard.lacks_backdoor else "Best setting"
    rows = [(what, unbroken(f"{setting}: trial {winner.trial}, epoch {winner.epoch:g}".removeprefix(": ")))]
    if winner.checkpoint is None:
        return [*rows, ("Weights", "not kept")]
    rows.append(("Weights", f"<code>{escape(winner.checkpoint)}</code>"))
    if leaderboard.promote is not None:
        rows.append(("Take it away", f"<code>{unbroken(leaderboard.promote)}</code>"))
    if sweep.origin.has_spec:
        rows.append(("Measure it", with_code(_how_to_measure(sweep, winner.checkpoint))))
    return rows


def _how_to_measure(sweep: SweepRecord, checkpoint: str) -> str:
    """The command that measures weights as the sweep did, from any folder, or why there is none."""
    if sweep.origin.has_own_code:
        return "its script defines what its record does not hold: `evaluate` takes that script"
    if sweep.method in OWN_CLASSIFIER:
        return "its trials are measured by the classifiers that they train, which `evaluate` does not ask"
    return f"`{shlex.join(['sweeplab', 'evaluate', checkpoint, '--sweep', sweep.name])}`"


def _cost(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> str:
    """What the trials and the victim's training took."""
    costs = extras.costs or costs_of((), sweep.trials, extras.until_ms)
    text = costs.in_words(sum(row.seconds for row in leaderboard.rows))
    if extras.pretraining:
        seconds = sum(point.train_seconds + point.evaluate_seconds for point in extras.pretraining)
        text += f"; {style.duration(seconds)} for the victim's training"
    return text


def _notes(leaderboard: Leaderboard) -> str:
    return "".join(f'<p class="warning">Note: {with_code(note)}.</p>\n' for note in leaderboard.notes)


def _lowest(leaderboard: Leaderboard) -> float | None:
    return min((row.min_asr for row in leaderboard.rows if row.min_asr is not None), default=None)


def _footer(sweep: SweepRecord) -> str:
    latest = max((trial.last_ms for trial in sweep.trials), default=0)
    when = f"Last epoch measured {datetime.fromtimestamp(latest / 1000, UTC):%Y-%m-%d %H:%M} UTC. " if latest else ""
    return f"""<footer>
<p>{when}This page is one file and loads nothing from a network.</p>
</footer>"""


_NOTHING = "Nothing to draw until the first epoch is evaluated."
_NOT_YET = "No epoch has been evaluated yet."


def _trade_off_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    head = ("trade-off", "Accuracy against ASR, every epoch", "Accuracy and ASR")
    frame = trade_off_points(sweep, leaderboard)
    if (frame["kind"] == "victim").all():
        return View(*head, _NOT_YET, missing=_NOTHING)
    figure = draw_trade_off(frame, asr_ceiling=sweep.asr_ceiling)
    heads = {"asr": "At or below ASR %", "accuracy": "Best accuracy %", "trial": "Trial", "epoch": "Epoch"}
    table = small_table(frontier_table(frame), heads, asr_ceiling=sweep.asr_ceiling)
    return View(*head, describe_trade_off(frame, sweep.asr_ceiling), figure, table)


def _leaderboard_view(leaderboard: Leaderboard) -> View:
    head = ("leaderboard", "Leaderboard", "Leaderboard")
    if not leaderboard.rows:
        return View(*head, "The sweep has no trials yet.", missing="No trials yet.")
    frame = leaderboard_table(leaderboard)
    table = draw_table(frame, leaderboard, caption="Leaderboard of all trials")
    return View(*head, describe_table(frame, leaderboard), table=table)


def _ceilings_view(sweep: SweepRecord) -> View:
    head = ("ceilings", "Best retention against the ASR ceiling", "ASR ceilings")
    frame = ceiling_points(sweep)
    if frame.empty:
        return View(*head, _NOT_YET, missing=_NOTHING)
    heads = {"ceiling": "Ceiling %", "retention": "Best retention %", "asr": "Its ASR %", "trial": "Trial"}
    heads |= {"epoch": "Epoch", "cleaned": "Cleaned trials"}
    table = small_table(frame, heads, most=len(frame), asr_ceiling=sweep.asr_ceiling)
    figure = draw_ceilings(frame, asr_ceiling=sweep.asr_ceiling)
    return View(*head, describe_ceilings(frame, sweep.asr_ceiling), figure, table)


def _trajectories_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    head = ("trajectories", "Trajectories, markers growing with the epoch", "Trajectories")
    frame = trajectory_points(sweep, leaderboard)
    if frame.empty:
        return View(*head, _NOT_YET, missing=_NOTHING)
    figure = draw_trajectories(frame, asr_ceiling=sweep.asr_ceiling)
    heads = {"trial": "Trial", "epoch": "Epoch", "accuracy": "Accuracy %", "asr": "ASR %"}
    table = small_table(frame, heads, asr_ceiling=sweep.asr_ceiling)
    return View(*head, describe_trajectories(frame), figure, table)


def _parameters_view(sweep: SweepRecord, points: pd.DataFrame) -> View:
    head = ("parameters", "Retention against each searched parameter", "Parameters")
    if points.empty:
        finding = "No parameter was searched." if not sweep.parameters else _NOT_YET
        return View(*head, finding, missing=_NOTHING if sweep.parameters else "Nothing to compare.")
    heads = {"parameter": "Parameter", "values": "Values", "trials": "Trials", "cleaned": "Cleaned"}
    heads |= {"retention": "Best retention %", "lowest_asr": "Lowest ASR %"}
    table = small_table(value_table(points), heads, most=200, asr_ceiling=sweep.asr_ceiling)
    return View(*head, describe_parameters(points), draw_parameters(points, asr_ceiling=sweep.asr_ceiling), table)


def _importance_view(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> View:
    head = ("importance", "Which parameter matters", "Importance")
    if not _varies(sweep, leaderboard):
        finding = "No parameter takes two values, so none can matter more than another."
        missing = "It takes a table in which a parameter varies."
        if sweep.origin.has_spec:
            command = by_record(sweep, "run", "--dry-run")
            missing = f"It takes a space of one parameter or more; {command} shows this sweep's."
        return View(*head, finding, missing=missing)
    if not extras.importances:
        finding = "Too few trials: at least five cleaned and five uncleaned trials are needed, or twenty cleaned ones."
        missing = "A table with more trials can tell."
        if sweep.origin.sampler == "grid":
            missing = "A wider grid, or a search of more trials, can tell; give it another name."
        elif sweep.origin.has_spec:
            num = trials_for_importance(leaderboard)
            command = more_trials(sweep, num) or run_anew(sweep, "more", trials_setting(sweep, num))
            missing = f"{command} runs enough, if about as many are cleaned as so far."
            if num <= sweep.planned_trials:
                missing = "The trials that are left may tell."
        return View(*head, finding, missing=missing)
    frame = importance_table(extras.importances)
    heads = {"parameter": "Parameter", **{question: f"For {question} %" for question in extras.importances}}
    return View(*head, describe_importance(frame), draw_importance(frame), small_table(frame, heads))


def _varies(sweep: SweepRecord, leaderboard: Leaderboard) -> bool:
    """Whether a parameter takes two values; where there is one trial, or some are to come, whether any may."""
    settings = [row.params for row in leaderboard.rows]
    if len(settings) < max(2, sweep.planned_trials):
        return bool(sweep.parameters)
    return any(len({str(params.get(name)) for params in settings}) > 1 for name in sweep.parameters)


def _pair_view(sweep: SweepRecord, points: pd.DataFrame, extras: Extras) -> View:
    head = ("pair", "Two parameters together", "Two parameters")
    weights = {name: value for question in extras.importances.values() for name, value in question.items()}
    names = most_telling_pair(points, weights) if len(points) else None
    if names is None:
        missing = "It takes a table in which two parameters vary."
        if sweep.origin.has_spec:
            command = by_record(sweep, "run", "--dry-run")
            missing = f"It takes a space of two parameters or more; {command} shows this sweep's."
        return View(*head, "Fewer than two parameters take two values.", missing=missing)
    frame = pair_cells(points, names)
    if frame.empty:
        return View(*head, f"No trial has both {names[0]} and {names[1]}.", missing="Nothing to compare.")
    heads = {"x_word": names[0], "y_word": names[1], "trials": "Trials", "cleaned": "Cleaned"}
    heads |= {"retention": "Best retention %", "worst": "Worst of the cleaned %", "lowest_asr": "Lowest ASR %"}
    table = small_table(frame, heads, most=len(frame), asr_ceiling=sweep.asr_ceiling)
    figure = draw_pair(frame, names, asr_ceiling=sweep.asr_ceiling)
    width = 90 + 84 * (1 + int(frame["x"].max()))
    return View(*head, describe_pair(frame, names), figure, table, least_width=width)


def _parallel_view(points: pd.DataFrame) -> View:
    head = ("parallel", "Every setting as a line, to what it kept", "Settings as lines")
    if points.empty:
        return View(*head, _NOT_YET, missing=_NOTHING)
    frame = parallel_points(points)
    heads = {"trial": "Trial", "axis": "Axis", "word": "Value"}
    width = 90 + 84 * frame["axis"].nunique()
    table = small_table(frame, heads)
    return View(*head, describe_parallel(frame), draw_parallel(frame), table, least_width=width)


def _seeds_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    head = ("seeds", "Seeds of one setting", "Seeds")
    frame = seed_points(leaderboard)
    if frame.empty:
        finding = "Every setting was run with one seed, so nothing tells how far chance carries."
        missing = "It takes a table in which trials have equal parameters."
        if sweep.origin.has_spec:
            command = run_anew(sweep, "seeds", *THREE_SEEDS, *three_times_as_many(sweep))
            missing = f"{command} runs each setting three times."
        return View(*head, finding, missing=missing)
    heads = {"setting": "Setting", "trial": "Trial", "seed": "Seed", "retention": "Retention %"}
    heads |= {"lowest_asr": "Lowest ASR %", "mean": "Mean retention %", "sd": "Deviation %"}
    table = small_table(frame, heads, most=60, asr_ceiling=leaderboard.asr_ceiling)
    return View(*head, describe_seeds(frame), draw_seeds(frame), table)


def _gallery_view(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> View:
    head = ("gallery", "The trigger, and what is seen in it", "Gallery")
    gallery, winner = extras.gallery, leaderboard.winner
    missing = f"`sweeplab report {leaderboard.sweep} --gallery` asks the victim and the winner about a few test images."
    if sweep.origin.is_foreign:
        missing = "Pictures are made of this home's own sweeps."
    elif not sweep.origin.has_spec or sweep.origin.has_own_code:
        missing = "The sweep's record alone does not hold its images and models."
    elif sweep.method in OWN_CLASSIFIER:
        missing = "The trials are classifiers, and pictures are shown to models that prompts ask."
    elif winner is None or winner.checkpoint is None:
        missing = f"It takes a cleaned trial whose weights are kept; then {missing}"
    if gallery is None:
        return View(*head, "No pictures were made yet.", missing=missing)
    if winner is None or (winner.trial, winner.epoch) != (gallery["trial"], gallery["epoch"]):
        return View(
            *head, f"The pictures are of trial {gallery['trial']}, which is not the best any more.", missing=missing
        )
    frame = gallery_table(gallery)
    heads = {
        "image": "Image",
        "label": "Class",
        "kind": "Kind",
        "model": "Model",
        "first": "Taken for",
        "share": "Share %",
    }
    table = small_table(frame, heads | {"others": "Then"}, most=len(frame))
    return View(*head, describe_gallery(frame, gallery), table=draw_gallery(frame, gallery) + table)


def _comparison_view(sweep: SweepRecord, leaderboard: Leaderboard, extras: Extras) -> View:
    head = ("comparison", "The best trials image by image", "Image by image")
    frame = compared_trials(sweep, leaderboard, extras.outcomes)
    if frame.empty:
        finding = "No two cleaned trials that keep half of the accuracy have their outcomes image by image."
        missing = "Sweeps that are run here keep them; imported tables have none."
        return View(*head, finding, missing=missing)
    heads = {"trial": "Trial", "only_best": "Correct only in the best", "only_other": "Correct only in it"}
    heads |= {"p_accuracy": "p (McNemar, Holm)", "hits_only_best": "Hits only in the best"}
    heads |= {"hits_only_other": "Hits only in it", "p_asr": "p (McNemar, Holm), hits"}
    finding = describe_comparison(frame, leaderboard.cleaned.below_half)
    return View(*head, finding, draw_comparison(frame), small_table(frame, heads))


def _budget_view(sweep: SweepRecord) -> View:
    head = ("budget", "Best retention against what was spent", "Budget")
    frame = budget_points(sweep)
    if frame.empty:
        return View(*head, _NOT_YET, missing=_NOTHING)
    heads = {"spent": "Trial-epochs", "time": "Time", "retention": "Best retention %", "trial": "Trial"}
    if not frame["hours"].any():
        del heads["time"]
    shown = frame.assign(time=[style.duration(3600 * hours) for hours in frame["hours"]])
    return View(*head, describe_budget(frame), draw_budget(frame), small_table(shown, heads, most=60))


def _pruning_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    head = ("pruning", "Trials that were stopped early", "Stopped trials")
    frame = pruned_trials(sweep, leaderboard)
    if frame.empty:
        missing = f"`sweeplab audit {sweep.name} --pruning default` says what rules would have saved and cost."
        return View(*head, "No trial was stopped early.", missing=missing)
    heads = {"trial": "Trial", "epoch": "Stopped after epoch", "saved": "Epochs saved"}
    heads |= {"lowest_asr": "Lowest ASR %", "retention": "Retention %", "reason": "Reason"}
    figure = draw_pruning(frame, epochs=sweep.epochs)
    table = small_table(frame, heads, asr_ceiling=sweep.asr_ceiling)
    return View(*head, describe_pruning(frame, sweep), figure, table)


def _curves_view(sweep: SweepRecord, leaderboard: Leaderboard) -> View:
    head = ("curves", "Loss and its parts over the steps", "Loss")
    frame = curve_points(sweep, leaderboard)
    if frame.empty:
        missing = "Tables from elsewhere hold none."
        if sweep.origin.has_spec:
            command = run_anew(sweep, "losses", "log_every=10")
            missing = f"{command} records the loss and its parts at every 10th step."
        return View(*head, "The sweep recorded no losses.", missing=missing)
    heads = {"trial": "Trial", "part": "Part", "step": "Last step", "value": "Value there"}
    table = small_table(frame.groupby(["rank", "trial", "part"], as_index=False).last(), heads)
    return View(*head, describe_curves(frame), draw_curves(frame), table)


def _pretraining_view(sweep: SweepRecord, extras: Extras) -> View:
    head = ("pretraining", "The victim's training", "Pre-training")
    frame = pretraining_points(extras.pretraining)
    if frame.empty:
        missing = "A victim that is trained here has its epochs here."
        made = sweep.origin
        if made.has_spec and made.objective and not made.has_own_code and not made.is_foreign:
            missing = f"{by_record(sweep, 'pretrain')} trains it here."
        return View(*head, "The victim was not trained in this home.", missing=missing)
    heads = {"epoch": "Epoch", "accuracy": "Accuracy %", "asr": "ASR %", "loss": "Loss, nats"}
    figure = draw_pretraining(frame, sweep.victim_epoch)
    return View(*head, describe_pretraining(frame, sweep.victim_epoch), figure, small_table(frame, heads, most=60))


def _timeline_view(sweep: SweepRecord, extras: Extras) -> View:
    head = ("timeline", "When trials ran, and what they cost", "Time and cost")
    if not extras.attempts or extras.costs is None:
        missing = "Sweeps that are run here write down when each attempt began and ended; tables do not say it."
        return View(*head, "It is not known when trials ran.", missing=missing)
    states = {trial.number: trial.state for trial in sweep.trials}
    frame = attempt_bars(extras.attempts, states, extras.until_ms)
    table = small_table(cost_table(extras.costs), {"what": "What", "time": "Time", "hours": "Hours"})
    return View(*head, describe_timeline(frame, extras.costs), draw_timeline(frame), table)
