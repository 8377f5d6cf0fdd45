"""MLflow: a client that logs runs, and checks of the names that it stores."""
