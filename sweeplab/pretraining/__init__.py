"""Pre-training: one file an objective. A new one is a file here and a member of `OBJECTIVES`."""

from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL

OBJECTIVES = (MMCL, MMCLWithSSL)
