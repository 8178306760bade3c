"""Sweep: the loop around trials. Prepare, make sure of the victim, run what is missing, resume."""
