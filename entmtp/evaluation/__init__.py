"""Is it true: suites of prompts, task scores, paired comparisons and their reports."""
