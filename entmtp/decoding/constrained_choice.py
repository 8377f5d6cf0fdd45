"""Choice of tokens under grammars: along each request's accepted path alone, as only its nodes need masks.

Other requests' tokens are chosen at all nodes at once. Here a node's token must be known before that of the next one,
so the paths are walked level by level, all constrained requests together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.sampling import Sampler, choose_at
from entmtp.trees.batch import TreeBatch

NOT_CHOSEN = -1
"""Choice after nodes that are not on an accepted path; no node holds it."""


def choose_on_paths(
    choice: torch.Tensor, tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]
) -> torch.Tensor:
    """Choose the tokens of constrained requests; returns ``choice [batch, width]`` with their rows replaced.

    A row whose text is complete keeps its choice, as nothing of it will be used. ``tokens [batch, width]`` and
    ``logits [batch, width, vocab_size]`` belong to the trees' nodes. An error of a constraint becomes its ``failure``.
    """
    walks = [
        _Walk(row, tokens[row].tolist(), trees, sampler, sampler.constraint)
        for row, sampler in enumerate(samplers)
        if sampler.constraint is not None and sampler.constraint.can_go_on
    ]
    with ExitStack() as rollbacks:
        for walk in walks:
            rollbacks.enter_context(walk.constraint.after(()))
        walking = walks
        while walking:
            walking = [walk for walk in walking if walk.follow_forced()]
            ready = [(walk, own) for walk in walking if (own := walk.target_logits(logits)) is not None]
            walking = []
            if not ready:
                break
            target = torch.stack([own for _, own in ready])[:, None]
            positions = [[walk.position] for walk, _ in ready]
            index = torch.zeros(len(ready), 1, dtype=torch.int64, device=logits.device)
            chosen = choose_at(target, [walk.sampler for walk, _ in ready], positions, index)[:, 0].tolist()
            walking = [walk for (walk, _), token in zip(ready, chosen, strict=True) if walk.go_on(token)]
    replaced = choice.clone()
    for walk in walks:
        replaced[walk.row] = NOT_CHOSEN
        nodes = torch.tensor(list(walk.chosen), device=choice.device)
        replaced[walk.row, nodes] = torch.tensor(list(walk.chosen.values()), device=choice.device)
    return replaced


class _Walk:
    """Walk along one request's accepted path.

    Attributes:
        chosen: the token after each node of the path so far.
    """

    def __init__(
        self, row: int, tokens: Sequence[int], trees: TreeBatch, sampler: Sampler, constraint: Constraint
    ) -> None:
        topology = trees.topologies[row]
        self.row, self.sampler, self.constraint = row, sampler, constraint
        self.chosen: dict[int, int] = {}
        self._children = {
            (parent, token): node
            for node, (parent, token) in enumerate(zip(topology.parents[1:], tokens[1:], strict=False), start=1)
        }
        self._node = 0
        self._path = [tokens[0]]

    @property
    def position(self) -> int:
        """Position in the answer of the token after the path."""
        return self.sampler.written + len(self._path)

    def follow_forced(self) -> bool:
        """Follow the tokens of which the grammar leaves no choice; returns whether one is to be chosen after them."""
        try:
            while forced := self.constraint.forced(1):
                if not self.go_on(forced[0]):
                    return False
        except Exception as error:  # of any type: it is caused by this request alone
            self._fail(error)
            return False
        return True

    def target_logits(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Logits ``[vocab_size]`` after the path's last node as the request shapes them; None if it failed."""
        own = logits[self.row, self._node].float()
        try:
            if self.sampler.modifies_logits:
                path = torch.tensor(self._path, device=own.device)
                counts = torch.bincount(path, minlength=len(own)).float()
                position = torch.tensor([self.position], device=own.device)
                own = self.sampler.process_logits(own[None], counts[None], position, lambda: [self._path])[0]
            return self.constraint.apply_mask(own)
        except Exception as error:  # of any type: it is caused by this request alone
            self._fail(error)
            return None

    def go_on(self, token: int) -> bool:
        """Take the token that was chosen; returns whether a node holds it and the text goes on after that."""
        self.chosen[self._node] = token
        if (node := self._children.get((self._node, token))) is None:
            return False
        try:
            self.constraint.follow(token)
        except Exception as error:  # of any type: it is caused by this request alone
            self._fail(error)
            return False
        self._node = node
        self._path.append(token)
        self.chosen[node] = 0  # if the text is complete here, nothing of it will be used
        return self.constraint.can_go_on

    def _fail(self, error: Exception) -> None:
        self.constraint.failure = error
        self.chosen[self._node] = 0
