"""Draft heads that a model brings along: multi-token-prediction (MTP) layers."""
