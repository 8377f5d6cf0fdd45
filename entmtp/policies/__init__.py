"""Policies that choose the tree of each step, and the step costs that they choose by."""
