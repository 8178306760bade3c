"""Tracking: what MLflow shows of a sweep, copied from the ledger."""
