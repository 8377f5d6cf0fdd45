"""Acceptance of a verified tree's path: the longest one on which every node is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from entmtp.decoding.constrained_choice import choose_on_paths
from entmtp.decoding.sampling import GREEDY, Sampler, choose_tokens, process_logits
from entmtp.models.kernels import fused_acceptance
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch

TYPICAL_EPSILON, TYPICAL_ALPHA = 0.09, 0.3
"""Medusa's defaults."""

_IDLE = Sampler(GREEDY)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step for one request, on the host.

    Attributes:
        tokens: the accepted path's, the root first.
        node: the path's last node.
        root: the model's own token after the path, which is the next step's root.
        entropy: nats, of the distribution that the next root was chosen from.
        finite: whether all states of the request's nodes are finite, those of rejected nodes included.
    """

    tokens: list[int]
    node: int
    root: int
    entropy: float
    finite: bool


class Accepted(NamedTuple):
    """Accepted paths of a batch, on the device.

    Attributes:
        nodes: ``[batch, depth + 1]`` the node at each depth of the path, the root first; arbitrary valid nodes after
            the path's end.
        counts: ``[batch]`` nodes of the path, at least 1; 0 on idle rows.
        root: ``[batch]`` the model's own token after the path.
        report: ``[batch, depth + 6]`` int64, everything that the host needs: whether all states are finite, count,
            last node, root, the entropy's bits, then the path's tokens.
    """

    nodes: torch.Tensor
    counts: torch.Tensor
    root: torch.Tensor
    report: torch.Tensor

    @property
    def last(self) -> torch.Tensor:
        """``[batch]`` the path's last node; any valid one on idle rows."""
        return self.report[:, 2]

    def to_host(self) -> list[Outcome]:
        """Copy the report to the host: the one synchronisation of a step."""
        report = self.report.cpu()
        entropies = report[:, 4].view(torch.float64).tolist()
        return [
            Outcome(tokens[:count], node, root, nats, bool(finite))
            for (finite, count, node, root, _, *tokens), nats in zip(report.tolist(), entropies, strict=True)
        ]

    def with_finite_check(self, states: torch.Tensor) -> Accepted:
        """Copy whose report also covers whether ``states [batch, ..., hidden_size]`` are finite.

        A cache row that is not finite makes the state of its own node not finite, as each node attends to itself. So
        does a state that enters a layer, since each layer adds to it. Features of heads need no check of their own.
        """
        report = self.report.clone()
        report[:, 0] &= states.isfinite().flatten(1).all(-1)
        return self._replace(report=report)

    def with_finite_check_fused(self, states: torch.Tensor) -> Accepted:
        """As :meth:`with_finite_check` in one call of the fused kernels; states are in float32, on a CPU."""
        report = self.report.clone()
        fused_acceptance.check_states(report, states)
        return self._replace(report=report)


def accept_greedy(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> Accepted:
    """Accept nodes that hold the model's likeliest token after their parent: exactly greedy decoding.

    Arguments as :func:`accept_longest_path`.
    """
    best = logits.max(-1).indices  # as argmax, in a third of its time on a CPU
    return accept_longest_path(tokens, matches_choice(tokens, best, trees), best, logits, trees)


def accept_greedy_fused(tokens: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor, trees: TreeBatch) -> Accepted:
    """As :func:`accept_greedy`, checked for states ``hidden`` that are not finite, in one call.

    It needs the fused kernels: logits and states in float32, on a CPU.
    """
    return Accepted(*fused_acceptance.accept_greedy(tokens, logits, hidden, trees))


def accept_greedy_triton(
    tokens: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor, trees: TreeBatch
) -> Accepted:
    """As :func:`accept_greedy`, checked for states ``hidden`` that are not finite, in three kernels of Triton.

    Trees have at most 64 nodes, the root included.
    """
    from entmtp.models.kernels.triton import accept
    from entmtp.models.kernels.triton.ancestor_bits import ancestor_bits

    return Accepted(*accept.accept_greedy(tokens, logits, hidden, ancestor_bits(trees.ancestors), trees))


def accept_sampled(
    tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]
) -> Accepted:
    """Accept nodes that hold the token that their request's sampler chooses, or by Medusa's typical acceptance.

    A constrained request's tokens are chosen on its accepted path alone. Arguments as :func:`accept_longest_path`.
    """
    samplers = [*samplers, *[_IDLE] * (len(tokens) - len(samplers))]
    free = [sampler if sampler.constraint is None else _IDLE for sampler in samplers]
    processed = process_logits(logits, tokens, trees, free)
    all_constrained = all(sampler is _IDLE for sampler in free)
    choice = torch.zeros_like(tokens) if all_constrained else choose_tokens(processed, trees, free)
    if any(sampler.constraint is not None for sampler in samplers):
        choice = choose_on_paths(choice, tokens, logits, trees, samplers)
    accepted = matches_choice(tokens, choice, trees)
    if any(sampler.accepts_typical for sampler in samplers):
        temperature = [[sampler.params.temperature or 1.0] for sampler in samplers]
        cooled = processed / torch.tensor(temperature, device=processed.device)[..., None]
        lossy = torch.tensor([sampler.accepts_typical for sampler in samplers], device=processed.device)
        accepted = torch.where(lossy[:, None], is_typical(tokens, cooled, trees), accepted)
    return accept_longest_path(tokens, accepted, choice, logits, trees)


def matches_choice(tokens: torch.Tensor, choice: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Whether each node holds the ``choice [batch, width]`` of its parent ``[batch, width]``: lossless acceptance."""
    return tokens == choice.gather(1, trees.parent)


def is_typical(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Whether each node's token is likely enough for its parent's entropy ``[batch, width]``: lossy acceptance.

    Medusa (arXiv 2401.10774, section 2.3.1): its probability is above ``min(epsilon, alpha exp(-entropy))``.
    """
    log_probs = logits.float().log_softmax(-1)
    parents = trees.parent[..., None].expand(-1, -1, logits.shape[-1])
    probability = log_probs.gather(1, parents).gather(-1, tokens[..., None])[..., 0].exp()
    threshold = (TYPICAL_ALPHA * (-entropy(logits)).exp()).clamp(max=TYPICAL_EPSILON)
    return probability > threshold.gather(1, trees.parent)


def accept_longest_path(
    tokens: torch.Tensor, accepted: torch.Tensor, choice: torch.Tensor, logits: torch.Tensor, trees: TreeBatch
) -> Accepted:
    """Accept the longest path of ``accepted [batch, width]`` nodes; the model's ``choice`` after it is the next root.

    ``tokens [batch, width]`` and ``logits [batch, width, vocab_size]`` belong to the trees' nodes, root first. Of paths
    of equal length the first in canonical order is taken (siblings never hold the same token).
    """
    accepted = accepted | (trees.depth == 0)
    reachable = trees.real & (accepted[:, None, :] | ~trees.ancestors).all(-1)
    last = torch.where(reachable, trees.depth, -1).argmax(-1, keepdim=True)
    nodes = _path_to(last, trees)
    counts = (trees.depth.gather(1, last)[:, 0] + 1) * trees.real[:, 0]
    root = choice.gather(1, last)
    root_logits = logits[torch.arange(len(last), device=last.device), last[:, 0]]
    root_entropy = entropy(root_logits).double()
    unchecked = torch.ones_like(last)
    report = [unchecked, counts[:, None], last, root, root_entropy.view(torch.int64)[:, None], tokens.gather(1, nodes)]
    return Accepted(nodes, counts, root[:, 0], torch.cat(report, dim=1))


def _path_to(last: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Nodes ``[batch, depth + 1]`` from the root to ``last [batch, 1]``, by depth."""
    depth = trees.shape.depth
    on_path = trees.ancestors.gather(1, last[..., None].expand(-1, -1, trees.width))[:, 0]
    # Nodes that are not on the path all go to one extra column, which is cut off.
    column = torch.where(on_path, trees.depth, depth + 1)
    indices = torch.arange(max(trees.width, depth + 2), device=last.device)
    nodes = indices[: depth + 2].repeat(len(last), 1)
    return nodes.scatter(1, column, indices[: trees.width].expand_as(column))[:, : depth + 1]
