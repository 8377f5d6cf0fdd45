"""Reports of a run: terminal, HTML page, figures, MLflow, comparisons of runs."""
