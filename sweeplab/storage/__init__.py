"""Storage: where a home's files lie and how they are written, so that a kill at any moment loses nothing."""
