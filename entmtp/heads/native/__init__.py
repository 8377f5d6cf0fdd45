"""Native draft heads: multi-token-prediction (MTP) layers that are part of the model."""
