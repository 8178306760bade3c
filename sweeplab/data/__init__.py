"""Data: readers, the embedded fruit stall, decoding and augmentation."""
