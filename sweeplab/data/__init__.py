"""Data: readers, the embedded fruit stall, decoding and augmentation. A new source of pairs joins `PAIR_SOURCES`."""

from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV

PAIR_SOURCES = (PairsCSV, FruitStall, LabelledPairs)
