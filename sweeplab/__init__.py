"""SweepLab: cleaning sweeps over backdoored CLIP models."""
