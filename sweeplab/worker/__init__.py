"""Worker: what a worker process does with a job, with or without Ray around it."""
