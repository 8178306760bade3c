"""Commands: what the command line does beside running sweeps."""
