"""A benchmark run: plan, units of work, workers, progress."""
