"""The gallery: which images are shown, how, and when there is none."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from sweeplab.commands.gallery import chosen_rows, make_gallery, picture
from sweeplab.commands.import_table import import_table
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.specs import InvalidInput


def test_the_first_image_of_evenly_spread_classes_is_chosen():
    """Rows 2, 3, 4, 6, 7 may be chosen; of classes 0, 1, 2, 4 three are shown: the first, one between, the last."""
    labels = np.array([3, 3, 1, 0, 1, 3, 4, 2])
    assert chosen_rows(labels, np.array([2, 3, 4, 6, 7]), most=3).tolist() == [3, 7, 6]
    assert chosen_rows(labels, np.array([2, 4])).tolist() == [2]


def test_small_pictures_are_exact_and_large_ones_small():
    pixels = torch.arange(3 * 48 * 48).reshape(3, 48, 48).remainder(256).to(torch.uint8)
    kind, _, content = picture(pixels).partition(";base64,")
    assert kind == "data:image/png"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown, pixels.permute(1, 2, 0).numpy())
    kind, _, content = picture(torch.zeros(3, 224, 224, dtype=torch.uint8)).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (160, 160)


def test_an_imported_table_has_no_gallery(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("trial,epoch,accuracy,asr\n0,0,0.9,0.9\n0,1,0.8,0.01\n")
    folder = import_table(table, tmp_path / "home", "made-up")
    board = rank_trials(folder.record(), folder.outcomes)
    with pytest.raises(InvalidInput, match="its record alone does not hold its images"):
        make_gallery(folder, board)
    assert not folder.gallery.exists()
