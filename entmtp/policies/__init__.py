"""Policies, which choose the tree of each step, and the step costs that they go by."""
