from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from torch.utils._python_dispatch import TorchDispatchMode

from entmtp.errors import EntMTPError
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Path, Topology
from tests.helpers.tiny_models import DRAFT_VOCAB, HEADS, TREES, random_heads, random_tokens, tiny_model

DEEPEST = Topology.of([(0,), (4,), (0, 1), (4, 0), (4, 0, 2), (0, 1, 0), (4, 0, 2, 3), (0, 1, 0, 1)])
BATCHES = {
    "one": [TREES["bushy"]],
    "deepest": [DEEPEST],
    "same for all": [TREES["wide"]] * 3,
    "ragged": [TREES["chain"], TREES["root"], DEEPEST, TREES["wide"]],
    "plain decoding": [TREES["root"], TREES["root"]],
}
every_batch = pytest.mark.parametrize("trees", BATCHES.values(), ids=BATCHES)


def hidden_and_root(rows: int, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, hidden_size, generator=generator), torch.tensor(random_tokens(rows, seed=rows))


def normalised(states: torch.Tensor) -> torch.Tensor:
    return states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


@torch.inference_mode()
def draft_distribution(heads: Any, hidden: torch.Tensor, path: list[int]) -> torch.Tensor:
    """Log-probabilities over the draft vocabulary after ``path`` (root first), from the formulas of the papers."""
    model_output, table = heads.output_weight, heads.input_embeddings
    inner, head = heads.config.inner_size, len(path) - 1
    own = slice(head * inner, (head + 1) * inner)
    if heads.kind == "medusa":
        lifted = heads.up.weight[own] @ normalised(hidden)
    else:
        lifted = heads.from_state.weight[own] @ normalised(hidden)
        for distance, token in enumerate(reversed(path)):
            matrix = heads.from_token.weight[distance * inner : (distance + 1) * inner]
            lifted = lifted + matrix @ normalised(table[token])
    state = heads.scale[head] * hidden + heads.down[head].T @ silu(lifted)
    return (model_output @ state).log_softmax(-1)


@every_batch
def test_each_node_is_the_guess_of_its_rank_after_its_own_path(
    exact_heads: StatelessHeads, trees: list[Topology]
) -> None:
    heads = exact_heads
    hidden, root = hidden_and_root(len(trees), heads.config.hidden_size)
    proposal = heads.propose(hidden, root, TreeBatch.of(trees))
    for row, tree in enumerate(trees):
        tokens: dict[Path, int] = {(): int(root[row])}
        assert (int(proposal.tokens[row, 0]), float(proposal.log_probs[row, 0])) == (tokens[()], 0.0)
        for node, path in enumerate(tree.paths, start=1):
            taken = [tokens[path[:depth]] for depth in range(len(path))]
            distribution = draft_distribution(heads, hidden[row], taken)
            expected = distribution.argsort(descending=True)[path[-1]]
            tokens[path] = int(proposal.tokens[row, node])
            assert tokens[path] == heads.draft_vocab[expected]
            torch.testing.assert_close(proposal.log_probs[row, node], distribution[expected], atol=1e-5, rtol=1e-4)
        assert not proposal.tokens[row, tree.nodes + 1 :].any()
        assert not proposal.log_probs[row, tree.nodes + 1 :].any()


def test_guesses_in_fewer_bits_are_nearly_the_exact_ones(heads: StatelessHeads, exact_heads: StatelessHeads) -> None:
    hidden, _ = hidden_and_root(64, heads.config.hidden_size)
    tokens = torch.tensor([random_tokens(HEADS, seed) for seed in range(64)])
    with torch.inference_mode():
        guessed, exact = (one.draft_logits(one.teacher_forced(hidden, tokens)) for one in (heads, exact_heads))
    assert 0 < (guessed - exact).abs().max() < 0.1 * exact.std() or compiled.unsupported_reason() is not None


@torch.inference_mode()
@every_batch
def test_teacher_forcing_along_a_path_gives_the_states_that_propose_guessed_from(
    heads: StatelessHeads, trees: list[Topology]
) -> None:
    hidden, root = hidden_and_root(len(trees), heads.config.hidden_size)
    proposal = heads.propose(hidden, root, TreeBatch.of(trees))
    for row, tree in enumerate(trees):
        for path in tree.paths:
            nodes = [tree.index[path[:depth]] for depth in range(len(path) + 1)]
            known = torch.zeros(1, heads.num_heads, dtype=torch.int64)
            known[0, : len(path)] = proposal.tokens[row, nodes[:-1]]
            states = heads.teacher_forced(hidden[row : row + 1], known)[0, len(path) - 1]
            tokens, log_probs = heads.top_k(states, path[-1] + 1)
            assert tokens[-1] == proposal.tokens[row, nodes[-1]]
            torch.testing.assert_close(log_probs[-1], proposal.log_probs[row, nodes[-1]], atol=1e-5, rtol=1e-4)


def test_a_ragged_batch_equals_one_by_one(heads: StatelessHeads) -> None:
    trees = BATCHES["ragged"]
    hidden, root = hidden_and_root(len(trees), heads.config.hidden_size)
    together = heads.propose(hidden, root, TreeBatch.of(trees))
    for row, tree in enumerate(trees):
        alone = heads.propose(hidden[row : row + 1], root[row : row + 1], TreeBatch.of([tree]))
        assert torch.equal(together.tokens[row, : tree.nodes + 1], alone.tokens[0])
        torch.testing.assert_close(together.log_probs[row, : tree.nodes + 1], alone.log_probs[0])


def test_fewer_heads_are_the_first_heads(heads: StatelessHeads) -> None:
    hidden, _ = hidden_and_root(3, heads.config.hidden_size)
    tokens = torch.tensor([random_tokens(HEADS, seed) for seed in range(3)])
    every = heads.teacher_forced(hidden, tokens)
    assert every.shape == (3, HEADS, heads.config.hidden_size)
    torch.testing.assert_close(heads.teacher_forced(hidden, tokens[:, :2], 2), every[:, :2])


def test_draft_logits_are_the_models_own_on_the_draft_vocabulary(heads: StatelessHeads, backbone: Backbone) -> None:
    hidden, _ = hidden_and_root(2, heads.config.hidden_size)
    torch.testing.assert_close(heads.draft_logits(hidden), backbone.logits(hidden)[:, heads.draft_vocab.long()])


def test_draft_logits_keep_the_bias_of_the_models_output_layer() -> None:
    biased = build_backbone(tiny_model("phi"))
    heads = random_heads("hydra", biased).attach(biased)
    hidden, _ = hidden_and_root(2, heads.config.hidden_size)
    assert biased.model.lm_head.bias.abs().max() > 0.1
    torch.testing.assert_close(heads.draft_logits(hidden), biased.logits(hidden)[:, heads.draft_vocab.long()])


def test_a_tree_deeper_than_the_heads_names_the_path(heads: StatelessHeads) -> None:
    deep = Topology.of([(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0)])
    with pytest.raises(EntMTPError, match=r"path \(0, 0, 0, 0, 0\) has depth 5 but there are only 4 draft heads"):
        heads.propose(*hidden_and_root(2, heads.config.hidden_size), TreeBatch.of([TREES["root"], deep]))


@pytest.mark.parametrize(("rank", "fits"), [(DRAFT_VOCAB - 1, True), (DRAFT_VOCAB, False)])
def test_a_rank_beyond_the_draft_vocabulary_is_named(heads: StatelessHeads, rank: int, fits: bool) -> None:
    trees = TreeBatch.of([Topology.of([(rank,)])])
    arguments = hidden_and_root(1, heads.config.hidden_size)
    if fits:
        heads.propose(*arguments, trees)
        return
    with pytest.raises(
        EntMTPError, match=f"n1-d1-w1-[0-9a-f]+ asks for child rank {rank} but the draft vocabulary has {DRAFT_VOCAB}"
    ):
        heads.propose(*arguments, trees)


def test_weights_that_training_changed_are_seen(heads: StatelessHeads) -> None:
    hidden, root = hidden_and_root(1, heads.config.hidden_size)
    trees = TreeBatch.of([TREES["chain"]])
    before = heads.propose(hidden, root, trees).log_probs
    weights = {name: weight.clone() for name, weight in heads.named_parameters()}
    heads.train()
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(0.5)
    heads.eval()
    changed = heads.propose(hidden, root, trees).log_probs
    heads.load_state_dict(weights, strict=False)
    heads.train().eval()
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(heads.propose(hidden, root, trees).log_probs, before)


class _Conversions(TorchDispatchMode):
    """Collects the numbers of elements of integers whose type is converted."""

    def __init__(self) -> None:
        super().__init__()
        self.integers: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::to", "aten::_to_copy") and not args[0].is_floating_point():
            self.integers.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_tokens_are_found_without_converting_the_draft_vocabulary(dtype: torch.dtype) -> None:
    heads = random_heads("hydra", build_backbone(tiny_model("llama", num_hidden_layers=1)))
    logits = torch.randn(3, 2, DRAFT_VOCAB, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode(), _Conversions() as conversions:
        tokens, log_probs = heads.likeliest(logits, 5)
    expected = logits.double().log_softmax(-1).topk(5)
    assert tokens.dtype == torch.int64
    assert torch.equal(logits.gather(-1, expected.indices), logits.topk(5).values)
    torch.testing.assert_close(log_probs, expected.values.float(), rtol=1e-6, atol=1e-6)
    assert all(token in heads.draft_vocab for token in tokens.flatten())
    assert conversions.integers == [tokens.numel()]
