"""Which path of a verified tree is kept: the longest on which every guess is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from entmtp.decoding.sampling import GREEDY, Sampler, choose, shaped
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch

TYPICAL_EPSILON, TYPICAL_ALPHA = 0.09, 0.3
"""Medusa's own settings."""

_IDLE = Sampler(GREEDY)


@dataclass(frozen=True)
class Outcome:
    """A step of one request, as the host sees it.

    Attributes:
        tokens: of the kept path, the root first.
        node: the path's last node.
        root: the model's own next token behind it: the next step's root.
        entropy: nats, of the distribution that the new root was chosen from.
        finite: whether all that the pass wrote for this request are numbers, rejected nodes included.
    """

    tokens: list[int]
    node: int
    root: int
    entropy: float
    finite: bool


class Accepted(NamedTuple):
    """The kept paths of a batch, on the device.

    Attributes:
        nodes: ``[batch, depth + 1]`` the node at each depth of the path, the root first; behind the path any node of a
            fitting number.
        counts: ``[batch]`` nodes of the path, at least 1; 0 on idle rows.
        root: ``[batch]`` the model's own next token behind it.
        report: ``[batch, depth + 6]`` int64, all that the host asks for: whether all states are finite, count, last
            node, root, the entropy's bits, then the path's tokens.
    """

    nodes: torch.Tensor
    counts: torch.Tensor
    root: torch.Tensor
    report: torch.Tensor

    def read(self) -> list[Outcome]:
        """Brings the outcome to the host: the one synchronisation of a step."""
        report = self.report.cpu()
        entropies = report[:, 4].view(torch.float64).tolist()
        return [
            Outcome(tokens[:count], node, root, nats, bool(finite))
            for (finite, count, node, root, _, *tokens), nats in zip(report.tolist(), entropies, strict=True)
        ]

    def checked(self, states: torch.Tensor) -> Accepted:
        """The same, its report telling of ``states [batch, ..., hidden_size]`` that are not numbers, too.

        A cache row that holds one makes the state of its own node one, as each node attends to itself.
        """
        report = self.report.clone()
        report[:, 0] &= states.isfinite().flatten(1).all(-1)
        return self._replace(report=report)


def greedy(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> Accepted:
    """Accepts the model's likeliest token after each parent: exactly greedy decoding; arguments as :func:`longest`."""
    best = logits.max(-1).indices  # as argmax, in a third of its time on a CPU
    return longest(tokens, chosen(tokens, best, trees), best, logits, trees)


def sampled(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]) -> Accepted:
    """Accepts what each request's sampler chooses, or what is typical for it; arguments as :func:`longest`."""
    samplers = [*samplers, *[_IDLE] * (len(tokens) - len(samplers))]
    own = shaped(logits, tokens, trees, samplers)
    choice = choose(own, trees, samplers)
    accepted = chosen(tokens, choice, trees)
    if any(sampler.typical for sampler in samplers):
        temperature = [[sampler.params.temperature or 1.0] for sampler in samplers]
        likely = typical(tokens, own / torch.tensor(temperature, device=own.device)[..., None], trees)
        lossy = torch.tensor([sampler.typical for sampler in samplers], device=own.device)
        accepted = torch.where(lossy[:, None], likely, accepted)
    return longest(tokens, accepted, choice, logits, trees)


def chosen(tokens: torch.Tensor, choice: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Whether each node holds the token ``choice [batch, width]`` behind its parent ``[batch, width]``: lossless."""
    return tokens == choice.gather(1, trees.parent)


def typical(tokens: torch.Tensor, logits: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Whether each node's token is likely enough where the model is unsure ``[batch, width]``: lossy.

    Medusa (arXiv 2401.10774, section 2.3.1): its probability is above ``min(epsilon, alpha exp(-entropy))``.
    """
    log_probs = logits.float().log_softmax(-1)
    parents = trees.parent[..., None].expand(-1, -1, logits.shape[-1])
    chance = log_probs.gather(1, parents).gather(-1, tokens[..., None])[..., 0].exp()
    least = (TYPICAL_ALPHA * (-entropy(logits)).exp()).clamp(max=TYPICAL_EPSILON)
    return chance > least.gather(1, trees.parent)


def longest(
    tokens: torch.Tensor, accepted: torch.Tensor, choice: torch.Tensor, logits: torch.Tensor, trees: TreeBatch
) -> Accepted:
    """Keeps the longest path of ``accepted [batch, width]`` nodes; the model's ``choice`` behind it is the next root.

    ``tokens [batch, width]`` and ``logits [batch, width, vocab_size]`` belong to the trees' nodes, root first. Among
    paths of equal length the one in canonical order first is taken (siblings never hold the same token).
    """
    right = accepted | (trees.depth == 0)
    kept = trees.real & (right[:, None, :] | ~trees.ancestors).all(-1)
    last = torch.where(kept, trees.depth, -1).argmax(-1, keepdim=True)
    nodes = _path_to(last, trees)
    counts = (trees.depth.gather(1, last)[:, 0] + 1) * trees.real[:, 0]
    root = choice.gather(1, last)
    behind = logits[torch.arange(len(last), device=last.device), last[:, 0]]
    uncertainty = entropy(behind).double()
    unchecked = torch.ones_like(last)
    report = [unchecked, counts[:, None], last, root, uncertainty.view(torch.int64)[:, None], tokens.gather(1, nodes)]
    return Accepted(nodes, counts, root[:, 0], torch.cat(report, dim=1))


def _path_to(last: torch.Tensor, trees: TreeBatch) -> torch.Tensor:
    """Nodes ``[batch, depth + 1]`` from the root to ``last [batch, 1]`` by their depth."""
    depth = trees.shape.depth
    on_path = trees.ancestors.gather(1, last[..., None].expand(-1, -1, trees.width))[:, 0]
    # Nodes that are not on the path all go to one more column, which is cut off.
    column = torch.where(on_path, trees.depth, depth + 1)
    numbers = torch.arange(max(trees.width, depth + 2), device=last.device)
    nodes = numbers[: depth + 2].repeat(len(last), 1)
    return nodes.scatter(1, column, numbers[: trees.width].expand_as(column))[:, : depth + 1]
