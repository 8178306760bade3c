"""Orchestration: the ledger, the search, the executors, and the one place where the stages are joined."""
