"""The words that a page and the README use, each with its meaning in a sentence."""

WORDS = {
    "victim": "the poisoned model that a sweep tries to clean; its twin is the same model trained without poison",
    "trigger, target label": "the pattern on an image, and the class that the attacker wants for it",
    "accuracy": "top-1 zero-shot accuracy on clean test images",
    "ASR": "attack success rate: the share of triggered test images, those of the target class left out, that go to "
    "the target label; of targeted images, which carry no trigger, the share that goes to their own adversarial class "
    "(PSR)",
    "cleaned": "an epoch whose ASR lies strictly below the ceiling ({ceiling}), and a trial that has one",
    "retention": "accuracy of the best cleaned epoch over the victim's, on the same images",
    "interval": "Wilson's at 95 %, of one rate; that of a retention holds the victim's accuracy fixed",
    "certified ✓": "the upper bound of the ASR (Clopper-Pearson, one-sided, at 95 % for all evaluated epochs together) "
    "lies below the ceiling too, so that it holds however the epoch was chosen",
    "other half": "accuracy and ASR on the half of the test images that had no part in choosing the epoch",
    "protocol": "`paper`: as the papers state it, with defects of their code mended; `authors`: as their code does it",
    "trial, sweep": "one setting, and a search over many",
}
"""`{ceiling}` stands for the ASR ceiling."""


def words(ceiling: str) -> dict[str, str]:
    """Words and what they mean.

    Args:
        ceiling: the ASR ceiling in words.
    """
    return {word: meaning.format(ceiling=ceiling) for word, meaning in WORDS.items()}
