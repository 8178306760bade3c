"""Cleaning: one file a method. A new one is a file here and a member of `METHODS`."""

from sweeplab.cleaning.cleanclip import CleanCLIP

METHODS = (CleanCLIP,)
