"""Attacks: triggers, and the plan of which pairs carry them. A new one is a file here and a member of `ATTACKS`."""

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.sig import SIG
from sweeplab.attacks.structured import BadNetStripes, BlendedStripes, BlendedText, BlendedTriangles
from sweeplab.attacks.wanet import WaNet

ATTACKS = (BadNet, Blended, WaNet, SIG, BadNetStripes, BlendedStripes, BlendedTriangles, BlendedText, ImageTrigger)
