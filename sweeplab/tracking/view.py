"""The saved view of MLflow's runs page: a sweep's runs by retention, with the columns and charts that matter."""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

VIEW_METRICS = {"best/feasible": 105, "best/retention": 160, "best/accuracy": 120, "best/asr": 120, "min/asr": 100}
"""Columns of the saved view, before the parameters, with their widths in pixels: MLflow shows every digit."""

PARAMETER_WIDTH = 120


def saved_view(name: str, parameters: Sequence[str]) -> str:
    """A saved view of MLflow's runs page (3.15 and later): by retention, largest first, with three charts."""
    metrics = [f"metrics.`{metric}`" for metric in VIEW_METRICS]
    searched = [f"params.`{parameter}`" for parameter in parameters]
    columns = [*metrics, *searched]
    widths = dict(zip(metrics, VIEW_METRICS.values(), strict=True)) | dict.fromkeys(searched, PARAMETER_WIDTH)
    state = {
        "searchFilter": "",
        "orderByKey": "metrics.`best/retention`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "compareRunCharts": _charts(parameters),
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "Accuracy and ASR",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
                "columns": 2,
                "cardHeight": 400,
            }
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "runsPinned": [],
        "runsHidden": [],
        "groupBy": None,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    made = 0  # a fixed time: writing the view again changes nothing
    return json.dumps({"name": name, "createdAt": made, "updatedAt": made, "state": f"deflate;{packed}"})


SECTION = "sweeplab-accuracy-and-asr"


def _charts(parameters: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of the saved view: accuracy against ASR over a trial's epochs, its end points, and all parameters."""

    def chart(kind: str, title: str, **fields: Any) -> dict[str, Any]:
        place = {"uuid": f"sweeplab-{kind.lower()}", "metricSectionId": SECTION, "isGenerated": False, "deleted": False}
        return {"type": kind, "displayName": title, **place, **fields}

    def axis(metric: str) -> dict[str, str]:
        return {"key": metric, "type": "METRIC"}

    return [
        chart("SCATTER", "Best cleaned point", xaxis=axis("best/asr"), yaxis=axis("best/accuracy")),
        chart(
            "LINE",
            "Accuracy against ASR, epoch by epoch",
            metricKey="eval/accuracy",
            selectedMetricKeys=["eval/accuracy"],
            xAxisKey="metric",
            selectedXAxisMetricKey="eval/asr",
            useGlobalXaxisKey=False,
            lineSmoothness=0,  # MLflow draws a running mean otherwise
            useGlobalLineSmoothing=False,
        ),
        chart(
            "PARALLEL",
            "Parameters and retention of cleaned trials",
            selectedParams=list(parameters),
            selectedMetrics=["best/retention"],
            showAllRuns=True,
        ),
    ]
