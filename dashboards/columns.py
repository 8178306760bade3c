"""The columns of numbers behind the page's charts: each stored once, in as few bytes as it can be told from."""

import base64
import gzip
import json
from typing import Any

import numpy as np


class Columns:
    """Arrays that figures name by their number; page.js reads them back.

    A column of fractions is kept as whole numbers where a denominator (of the test images) makes all of them whole, so
    that it is exact and short; else with 24 bits. Equal columns are one.
    """

    def __init__(self, denominators: tuple[int, ...] = ()) -> None:
        """Begin with none.

        Args:
            denominators: of the fractions, in percent, that may be expected.
        """
        self._scales = (1.0, *(100 / n for n in dict.fromkeys(denominators) if n < 2**16), 0.01, 0.001)
        self._numbers: dict[tuple[str, float, bytes], int] = {}

    def add(self, values: np.ndarray) -> int:
        """Keep a one-dimensional array of numbers; returns its number."""
        kind, scale, content = self._packed(np.asarray(values))
        return self._numbers.setdefault((kind, scale, content), len(self._numbers))

    def _packed(self, values: np.ndarray) -> tuple[str, float, bytes]:
        if values.dtype.kind in "iub" and (not len(values) or (values.min() >= 0 and values.max() < 2**16)):
            return _whole(values, 1.0)
        if values.dtype.kind == "f" and np.isfinite(values).all() and len(values) and values.min() >= 0:
            for scale in self._scales:
                whole = values / scale
                if whole.max() < 2**16 and np.abs(whole - np.round(whole)).max() < 1e-6:
                    return _whole(np.round(whole), scale)
        exact = values.astype(np.int32) if values.dtype.kind in "iub" else values.astype(np.float32)
        return exact.dtype.str[1:], 1.0, exact.tobytes()

    def figure(self, value: Any) -> Any:
        """A figure's plain values, as plotly's `to_plotly_json` gives them, with its arrays kept here and named."""
        if isinstance(value, dict):
            if "bdata" in value:
                content = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
                # Of a matrix (plotly writes "rows, columns") the page needs the width of its rows.
                width = {"width": int(value["shape"].split(",")[1])} if "shape" in value else {}
                return {"column": self.add(content), **width}
            return {key: self.figure(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.figure(item) for item in value]
        return value

    def packed(self) -> str:
        """All columns as text: gzip in base64 of a JSON list of (type, scale, bytes), a line end, and their bytes."""
        heads = [[kind, scale, len(content)] for kind, scale, content in self._numbers]
        # Bytes of one significance lie together, which gzip makes the most of.
        bodies = [
            np.frombuffer(content, np.uint8).reshape(-1, int(kind[1])).T.tobytes() for kind, _, content in self._numbers
        ]
        whole = json.dumps(heads, separators=(",", ":")).encode() + b"\n" + b"".join(bodies)
        return base64.b64encode(gzip.compress(whole, 9, mtime=0)).decode()


def _whole(values: np.ndarray, scale: float) -> tuple[str, float, bytes]:
    kind = np.uint8 if not len(values) or values.max() < 2**8 else np.uint16
    return np.dtype(kind).str[1:], scale, values.astype(kind).tobytes()
