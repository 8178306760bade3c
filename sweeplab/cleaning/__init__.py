"""Cleaning: one file a method. A new one is a file here and a member of `METHODS`."""

from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.pretraining.roclip import RoCLIP

METHODS = (CleanCLIP, DeepClustering, PAR, RoCLIP, SupervisedFinetuning)
