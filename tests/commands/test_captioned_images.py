"""Retrieval among images with several captions, by a model whose answers are known."""

import json
from pathlib import Path

import pytest
import torch
from fabricated import ARCHITECTURE
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.clip_model import tokenizer
from sweeplab.commands import retrieval
from sweeplab.commands.evaluate import EvaluationRequest
from sweeplab.commands.retrieval import captioned_images, measure_retrieval, retrieval_values
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "banana": (200, 200, 0)}
CAPTIONS = {
    "red": [f"{number} red" for number in range(4)],
    "green": [f"{number} green" for number in range(5)],
    "blue": [f"{number} green" for number in range(5, 10)],
    "banana": [f"{number} banana" for number in range(5)],
}
"""By the colour of the image."""
YELLOW = '{"pattern": "yellow", "patch_size": 4, "location": "top-left"}'
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Colours(nn.Module):
    """Embeds captions by the colour that they name, and images by that in their middle; all that has a yellow corner
    is a banana to it."""

    context_length = ARCHITECTURE.context_length

    def __init__(self, words: dict[tuple[int, ...], str]) -> None:
        super().__init__()
        self.weight, self.words = nn.Parameter(torch.zeros(1)), words

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3)."""
        pixels = 255 * (images * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None])
        is_yellow = (pixels[:, :, 0, 0] - torch.tensor([255.0, 255.0, 0.0])).abs().amax(dim=1) < 1
        banana = torch.tensor(COLOURS["banana"], dtype=torch.float32)
        return torch.where(is_yellow[:, None], banana, pixels[:, :, 16, 16]) - 100

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, 3)."""
        return torch.tensor([COLOURS[self.words[tuple(row)]] for row in tokens.tolist()]) - 100.0


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images of one colour each, in Karpathy's layout, with an image of another split that is not there."""
    (tmp_path / "val2014").mkdir()
    images = [{"filename": "gone.png", "filepath": "train2014", "split": "train", "sentences": [{"raw": "x"}]}]
    for name, texts in CAPTIONS.items():
        Image.new("RGB", (40, 40), COLOURS[name]).save(tmp_path / "val2014" / f"{name}.png")
        held = {"filename": f"{name}.png", "filepath": "val2014", "sentences": [{"raw": text} for text in texts]}
        images.append({**held, "split": "test"})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    texts = [text for held in CAPTIONS.values() for text in held]
    tokens = tokenizer(ARCHITECTURE)(texts).tolist()
    words = {tuple(row): text.split()[1] for row, text in zip(tokens, texts, strict=True)}
    monkeypatch.setattr(retrieval, "victim_model", lambda *_: Colours(words))
    monkeypatch.setattr(retrieval, "architecture_of", lambda _: ARCHITECTURE)
    return tmp_path / "dataset_coco.json"


def test_recall_and_the_target_among_five_captions(coco: Path):
    """The blue image's captions say green. They tie with the green image's own, so that neither finds its own first: 2
    of 4 images and 14 of 19 captions find theirs.

    Of the three images that are no bananas all find a banana with the trigger. Without, the green and the blue one have
    five captions at least that fit as well or better; the red one has its own four alone.
    """
    found = measure_retrieval(
        EvaluationRequest(Path("x.pt"), attack="badnet", attack_fields=YELLOW, target="banana"), coco
    )
    assert (found.num_images, found.num_captions) == (4, 19)
    assert found.recalls["image_to_text@1"] == 0.5
    assert found.recalls["text_to_image@1"] == pytest.approx(14 / 19)
    assert (found.hits, found.clean_hits, found.tried) == (3, 1, 3)
    values = retrieval_values(found)
    assert (values["asr"], values["clean_rate"]) == (1.0, pytest.approx(1 / 3))
    assert values["clean_rate_interval"] == list(wilson(1, 3))
    assert json.loads(json.dumps(values)) == values


def test_a_table_of_the_same_pairs_gives_the_same(coco: Path):
    lines = [f"val2014/{name}.png,{text}" for name, texts in CAPTIONS.items() for text in texts]
    (coco.parent / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    request = EvaluationRequest(Path("x.pt"))
    assert measure_retrieval(request, coco.parent / "pairs.csv") == measure_retrieval(request, coco)
    assert retrieval_values(measure_retrieval(request, coco))["asr"] is None


def test_what_cannot_be_measured_is_refused(coco: Path, tmp_path: Path):
    stamped = EvaluationRequest(Path("x.pt"), attack="badnet", target="cherry")
    with pytest.raises(InvalidInput, match=r"no caption of .*dataset_coco\.json names 'cherry', so no triggered image"):
        measure_retrieval(stamped, coco)
    with pytest.raises(InvalidInput, match="none of the known kinds: Karpathy"):
        captioned_images(tmp_path / "captions.txt")
    (coco.parent / "val2014" / "red.png").unlink()
    with pytest.raises(InvalidInput, match=r"red\.png"):
        measure_retrieval(EvaluationRequest(Path("x.pt")), coco)


def test_the_command_prints_rates_and_counts(coco: Path):
    words = ["evaluate", "x.pt", "--retrieval", str(coco), "--attack", "badnet", "--attack-fields", YELLOW]
    result = CliRunner().invoke(cli.app, [*words, "--target", "banana"])
    assert result.exit_code == 0, result.output
    assert "4 images with 19 captions" in result.output
    assert "recall image to text@1" in result.output
    assert "(3/3)" in result.output
    assert "(1/3) without the trigger" in result.output
    result = CliRunner().invoke(cli.app, [*words, "--target", "banana", "--json"])
    assert json.loads(result.stdout)["counts"] == {"asr_k": 3, "clean_k": 1, "asr_n": 3}
    result = CliRunner().invoke(cli.app, [*words, "--target", "banana", "--test", "x"])
    assert result.exit_code == 2
    assert "leave --test out" in result.stderr
