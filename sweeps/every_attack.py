"""Poison the small CLIP of the quickstart with each attack, 5 % of its pairs, and clean each victim with CleanCLIP.

    python sweeps/every_attack.py --only every-attack-wanet
    sweeplab pretrain sweeps/every_attack.py --only every-attack-wanet                        # the victim alone
    sweeplab pretrain sweeps/every_attack.py --only every-attack-wanet victim.poisoning.rate=0   # its unpoisoned twin

Images of 48 pixels hide less than the papers' 224: patches, shares and strengths are those that such a model learns,
and differ from the papers' where a field is given below. About 3 minutes a victim on 2 cores, 5 a sweep.
"""

from quickstart import SWEEP as QUICKSTART
from quickstart import VICTIM as BADNET_VICTIM

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.sig import SIG
from sweeplab.attacks.structured import BadNetStripes, BlendedStripes, BlendedText, BlendedTriangles
from sweeplab.attacks.wanet import WaNet
from sweeplab.cli import main
from sweeplab.experiment import CleaningSweep, Search
from sweeplab.specs import Spec


def sweep_of(name: str, attack: Spec) -> CleaningSweep:
    """The quickstart with another attack."""
    poisoning = BADNET_VICTIM.poisoning.replace(attack=attack)
    victim = BADNET_VICTIM.replace(name=f"every-attack-{name}", poisoning=poisoning)
    return QUICKSTART.replace(name=f"every-attack-{name}", victim=victim, search=Search(trials=6, startup_trials=3))


SWEEPS = (
    sweep_of("badnet", BadNet(patch_size=6, pattern="binary")),
    sweep_of("badnet-stripes", BadNetStripes(patch_size=8)),
    sweep_of("blended", Blended(noise="fixed")),
    sweep_of("blended-stripes", BlendedStripes(alpha=0.1)),
    sweep_of("blended-triangles", BlendedTriangles()),
    sweep_of("blended-text", BlendedText()),
    sweep_of("wanet", WaNet(control_points=4, strength=2.0)),
    sweep_of("sig", SIG()),
)

if __name__ == "__main__":
    main(*SWEEPS)
