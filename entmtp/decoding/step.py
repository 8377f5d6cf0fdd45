"""One step of tree decoding for a batch of requests, each with its own tree: the algorithm, on one screen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.decoding.acceptance import greedy
from entmtp.decoding.request import RunningRequest, StepRecord
from entmtp.decoding.stopwatch import Stopwatch
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.scheduling.policies import Policy
from entmtp.trees.batch import TreeBatch


def decode_step(
    backbone: Backbone,
    heads: DraftHeads | None,
    policy: Policy,
    cache: TreeCache,
    requests: Sequence[RunningRequest],
) -> None:
    """Moves every request on by its root and the accepted path of its tree; fills in the next root.

    ``heads`` may be None if the policy only ever chooses plain decoding.
    """
    watch = Stopwatch(backbone.device)

    # 1. signals -> policy -> topology
    signals = [request.tracker.start_step(len(request.tokens), request.entropy) for request in requests]
    chosen = [policy.choose(seen, request.policy_state) for seen, request in zip(signals, requests, strict=True)]
    trees = TreeBatch.of(chosen, backbone.device)
    watch.mark("policy")

    # 2. the heads fill each topology with tokens, from the state that chose the root
    root = torch.tensor([request.root for request in requests], device=backbone.device)
    if heads is None or trees.width == 1:
        tokens = root[:, None]
    else:
        tokens = heads.propose(torch.stack([request.hidden for request in requests]), root, trees).tokens
    watch.mark("draft")

    # 3. one forward pass over all nodes of all trees
    hidden = backbone.verify(tokens, trees, [request.slot for request in requests], cache)
    logits = backbone.logits(hidden)
    watch.mark("verify")

    # 4. keep the longest accepted path; its rows stay in the cache, its last state chose the next root
    accepted = greedy(tokens, logits, trees)
    watch.mark("accept")
    cache.commit([path.nodes for path in accepted])
    for row, (request, path) in enumerate(zip(requests, accepted, strict=True)):
        request.tokens += tokens[row, path.nodes].tolist()
        request.root, request.entropy, request.hidden = path.root, path.entropy, hidden[row, path.nodes[-1]]
        request.tracker.end_step(len(path.nodes))
    watch.mark("compact")

    ms = watch.split()
    for request, seen, topology, path in zip(requests, signals, chosen, accepted, strict=True):
        ranks = topology.paths[path.nodes[-1] - 1] if len(path.nodes) > 1 else ()
        request.steps.append(
            StepRecord(seen.position, topology, ranks, seen, **{f"{part}_ms": time for part, time in ms.items()})
        )
