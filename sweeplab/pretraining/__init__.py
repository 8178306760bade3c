"""Pre-training: one file an objective. A new one is a file here and a member of `OBJECTIVES`."""

from sweeplab.pretraining.abl import ABL
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP

OBJECTIVES = (MMCL, MMCLWithSSL, SafeCLIP, RoCLIP, ABL)
