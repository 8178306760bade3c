"""Evaluation: zero-shot accuracy, ASR, retention."""
