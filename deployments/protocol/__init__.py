"""Requests, responses and errors in the shapes of the OpenAI API, and messages between ingress and engines."""
