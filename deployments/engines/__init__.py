"""Engines: replicas, routing, autoscaling, failover and metrics."""
