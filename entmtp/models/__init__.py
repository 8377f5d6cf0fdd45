"""The frozen causal LM: backbone, key/value cache, masks and attention of trees, and the self-test at load."""
