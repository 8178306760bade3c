r"""Plant a patch that BadCLIP optimised (Liang et al. 2024), and clean the victim with CleanCLIP.

    sweeplab pretrain sweeps/quickstart.py victim.poisoning.rate=0    # a clean model; prints where its weights lie
    sweeplab attack badclip sweeps/quickstart.py WEIGHTS --to badclip.png \
        --set patch_size=6 --set epochs=10 --set learning_rate=0.01   # about 5 minutes on 2 cores
    python sweeps/badclip.py                                          # in the folder of badclip.png

The patch lies at the centre of 5 % of the images. The paper's is 16 of 224 pixels, optimised over 50 epochs at a rate
of 1e-3, and planted by finetuning; here the victim is pre-trained like the quickstart's, so that the two compare. Since
the patch is optimised against the clean model, that model may call some patched images "banana" too.
"""

from pathlib import Path

from quickstart import SWEEP as QUICKSTART
from quickstart import VICTIM as BADNET_VICTIM

from sweeplab.attacks.own import ImageTrigger
from sweeplab.cli import main
from sweeplab.experiment import Search

PATCH = ImageTrigger(
    path=Path("badclip.png"),
    position="center",
    made_by="sweeplab attack badclip sweeps/quickstart.py WEIGHTS --to badclip.png --set patch_size=6 "
    "--set epochs=10 --set learning_rate=0.01",
)

VICTIM = BADNET_VICTIM.replace(name="badclip", poisoning=BADNET_VICTIM.poisoning.replace(attack=PATCH))

SWEEPS = (QUICKSTART.replace(name="badclip", victim=VICTIM, search=Search(trials=6, startup_trials=3)),)

if __name__ == "__main__":
    main(*SWEEPS)
