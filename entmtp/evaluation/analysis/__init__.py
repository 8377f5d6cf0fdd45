"""From rows to numbers and conclusions."""
