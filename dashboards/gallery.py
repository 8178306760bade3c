"""The trigger in a few pictures, and what the victim and the winner take them for."""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from dashboards import style

PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+")


def gallery_table(gallery: Mapping[str, Any]) -> pd.DataFrame:
    """One row an image, kind (`clean`, `triggered`) and model (`victim`, `winner`).

    Columns: `image` (from 1 on), `label` (its own class), `kind`, `model`, `first` (the likeliest class), `share` (its
    own, a fraction), `others` (the next ones, in words), `is_target` (whether it is what the attacker wants).
    """
    rows = []
    for place, image in enumerate(gallery["images"], start=1):
        for model in ("victim", "winner"):
            for kind in ("clean", "triggered"):
                (first, share), *others = image[f"{model}_{kind}"]
                words = ", ".join(f"{name} {style.percent(float(part), 0)}" for name, part in others)
                rows.append(
                    (place, image["label"], kind, model, first, float(share), words, first == gallery["target"])
                )
    return pd.DataFrame(rows, columns=["image", "label", "kind", "model", "first", "share", "others", "is_target"])


def describe_gallery(frame: pd.DataFrame, gallery: Mapping[str, Any]) -> str:
    """The pictures in one sentence."""
    triggered = frame[frame["kind"] == "triggered"]
    hits = {model: int(part["is_target"].sum()) for model, part in triggered.groupby("model")}
    count = frame["image"].nunique()
    return (
        f"With the trigger the victim takes {hits['victim']} of {count} images for {gallery['target']}; trial "
        f"{gallery['trial']} (epoch {gallery['epoch']:g}) takes {hits['winner'] or 'none'} of them for it."
    )


def draw_gallery(frame: pd.DataFrame, gallery: Mapping[str, Any]) -> str:
    """HTML: a line an image with its pictures and what is said of them; every text from outside is escaped.

    Args:
        frame: of `gallery_table`.
        gallery: the same.
    """
    said = {(row["image"], row["kind"], row["model"]): row for row in frame.to_dict("records")}
    lines = []
    for place, image in enumerate(gallery["images"], start=1):
        cells = [
            _picture(image["clean"], f"{image['label']}, clean"),
            _picture(image["triggered"], f"{image['label']}, triggered"),
            _picture(image["difference"], "their difference, magnified"),
            *(_said(said[place, kind, model]) for model in ("victim", "winner") for kind in ("clean", "triggered")),
        ]
        lines.append(f'<tr><th scope="row">{escape(image["label"])}</th>{"".join(cells)}</tr>')
    heads = ["Class", "Clean", "Triggered", "Difference"]
    heads += [f"{model}, {kind}" for model in ("Victim", "Winner") for kind in ("clean", "triggered")]
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "\n".join(lines)
    table = f'<table class="gallery"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _picture(address: str, text: str) -> str:
    """A picture of the gallery's file, which may have come from elsewhere: nothing but a picture is taken."""
    source = address if PICTURE.fullmatch(address) else ""
    return f'<td><img src="{source}" alt="{escape(text)}" title="{escape(text)}"></td>'


def _said(row: Mapping[Any, Any]) -> str:
    mark = ' class="hit"' if row["kind"] == "triggered" and row["is_target"] else ""
    share = style.percent(row["share"], 0)
    first, others = escape(row["first"]), escape(row["others"])
    return f'<td class="text"><strong{mark}>{first}</strong> {share}<small>{others}</small></td>'
