"""Training tools: randomness, optimisation, ranks, checkpoints and the one loop of pre-training and cleaning."""
