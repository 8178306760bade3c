"""Search: the door to Optuna. Which setting comes next, when a trial is stopped, and what that cost."""
