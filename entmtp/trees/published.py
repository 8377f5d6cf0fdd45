"""The 63-node tree that Medusa published for Vicuna-7B and that Hydra and the EntMTP reference use unchanged."""

from __future__ import annotations

from entmtp.trees.topology import Path, Topology

# Medusa's `mc_sim_7b_63`, in the order in which its greedy search added the nodes (one digit per child rank).
_ORDER = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 "
    "40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)


def published_order() -> list[Path]:
    """The 63 paths, best first; the first n of them are a tree for every n."""
    return [tuple(int(rank) for rank in word) for word in _ORDER.split()]


def published_tree(max_depth: int = 4) -> Topology:
    """The published tree without the paths that are deeper than ``max_depth`` heads."""
    paths = [path for path in published_order() if len(path) <= max_depth]
    return Topology.of(paths)
