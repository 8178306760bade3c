"""Ranking: the leaderboard of a sweep and the intervals of what it measured."""
