"""Reports of a run: terminal, HTML page, figures, MLflow; and comparisons of runs."""
