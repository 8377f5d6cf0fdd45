"""The service: Ray Serve deployments, and how they are started."""

TESTED_RAY = "2.60.0"
"""The version of Ray that the service is tested with, of whose inner workings it knows a little."""
