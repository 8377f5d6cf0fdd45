"""MLflow: the client that runs are written with, and the names that it can store."""
