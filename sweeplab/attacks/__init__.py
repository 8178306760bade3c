"""Attacks: triggers, and the plan of which pairs carry them. A new one is a file here and a member of `ATTACKS`."""

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended

ATTACKS = (BadNet, Blended)
