"""Data: readers, the embedded fruit stall, decoding and augmentation. A new source of pairs joins `PAIR_SOURCES`."""

from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.karpathy import KarpathyJSON
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.data.pairs_shards import PairsShards

PAIR_SOURCES = (PairsCSV, PairsParquet, KarpathyJSON, Img2Dataset, PairsShards, FruitStall, LabelledPairs)
