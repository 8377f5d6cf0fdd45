"""Draft heads that run layers of their own on each drafted token, level by level, one token ahead of the model."""
