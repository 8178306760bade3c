"""Execution: the door to Ray. Where jobs run, and how their reports come back."""
