"""The service: Ray Serve deployments, and commands that start them."""

TESTED_RAY = "2.60.0"
"""The version of Ray that the service is tested with; it uses some of Ray's private names."""
