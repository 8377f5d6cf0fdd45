"""Imported heads: their guesses equal the published formulas through every drafting method."""

from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.decoding.graphs import Graphs
from entmtp.decoding.sequence import bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.importing.import_heads import import_heads
from entmtp.heads.stateless import StatelessExpansion, StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.block_weight import dequantized
from entmtp.policies.base import Policy
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from entmtp.trees.trace import TRACED_RANKS
from tests.helpers.published_checkpoints import LAYOUTS, Model, Published
from tests.helpers.small_cases import (
    single_engine,
    small_backbone,
    small_dynamic_policy,
    small_prompt,
    traced,
)
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES, greedy, random_tokens, tiny_model

ROWS = 5
TREE = Topology.of([(0,), (1,), (4,), (0, 1), (4, 0), (4, 2), (4, 0, 3), (0, 1, 0)])


def model_of(backbone: Backbone) -> Model:
    output = backbone.model.get_output_embeddings().weight.detach()
    return Model(output.clone(), dequantized(backbone.embeddings).detach().clone())


def imported(published: Published, backbone: Backbone, folder: Path) -> StatelessHeads:
    import_heads(str(published.save(folder / "published")), folder / "ours", None, lambda text: None)
    heads = load_heads(folder / "ours", backbone)
    assert isinstance(heads, StatelessHeads)
    return heads


@pytest.fixture(scope="module")
def exact() -> Backbone:
    """A backbone whose layers, and so its heads', are PyTorch's own in float32."""
    return build_backbone(tiny_model("llama"), kernels="eager")


@pytest.fixture(scope="module")
def small() -> Backbone:
    return small_backbone(kernels="eager")


@pytest.fixture(params=list(LAYOUTS))
def published(request: pytest.FixtureRequest, exact: Backbone) -> Published:
    return LAYOUTS[request.param](model_of(exact))


@torch.inference_mode()
def test_the_heads_are_the_published_formula(published: Published, exact: Backbone, tmp_path: Path) -> None:
    heads = imported(published, exact, tmp_path)
    assert (heads.kind, heads.num_heads) == (published.kind, published.heads)
    guessable = torch.arange(exact.vocab_size) if published.guessable is None else published.guessable
    assert torch.equal(heads.draft_vocab.long(), guessable)
    hidden = torch.randn(ROWS, exact.hidden_size)
    tokens = torch.tensor([random_tokens(heads.num_heads, seed) for seed in range(ROWS)])
    states = heads.teacher_forced(hidden, tokens)
    assert states.shape == (ROWS, heads.num_heads, exact.hidden_size)
    every = heads.draft_logits(states)
    torch.testing.assert_close(heads.draft_logits(heads.teacher_forced(hidden, tokens[:, :2], 2)), every[:, :2])
    for head in range(heads.num_heads):
        expected = published.logits(head, hidden, tokens[:, : head + 1])
        torch.testing.assert_close(every[:, head], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.draft_logits(states[:, head], head), expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_trees_are_filled_and_grown_by_the_formula(published: Published, exact: Backbone, tmp_path: Path) -> None:
    heads = imported(published, exact, tmp_path)
    hidden, root = torch.randn(3, exact.hidden_size), torch.tensor(random_tokens(3))
    trees = [TREE, TREES["root"], TREES["chain"]]
    proposal = heads.propose(hidden, root, TreeBatch.of(trees))
    for row, tree in enumerate(trees):
        tokens: dict[tuple[int, ...], int] = {(): int(root[row])}
        for node, path in enumerate(tree.paths, start=1):
            taken = torch.tensor([[tokens[path[:depth]] for depth in range(len(path))]])
            log_probs = published.logits(len(path) - 1, hidden[row : row + 1], taken)[0].log_softmax(-1)
            best = log_probs.argsort(descending=True)[path[-1]]
            tokens[path] = int(proposal.tokens[row, node])
            assert tokens[path] == heads.draft_vocab[best]
            torch.testing.assert_close(proposal.log_probs[row, node], log_probs[best], atol=1e-5, rtol=1e-4)
            assert grown(heads, hidden[row], int(root[row]), path) == tokens[path]


def grown(heads: StatelessHeads, hidden: torch.Tensor, root: int, path: tuple[int, ...]) -> int:
    """The token at the end of a path of a tree that is expanded level by level."""
    expansion, parent, count = StatelessExpansion(heads, hidden[None], torch.tensor([root])), 0, 5
    for rank in path:
        tokens, _ = expansion.next_level([parent], count)
        parent, token = rank, int(tokens[0, rank])
    return token


@pytest.mark.parametrize("layout", ["medusa, oldest", "vLLM, token map", "hydra, four layers"])
def test_a_trace_has_the_rank_that_the_formula_gives(layout: str, small: Backbone, tmp_path: Path) -> None:
    published = LAYOUTS[layout](model_of(small))
    heads = imported(published, small, tmp_path)
    text = small_prompt(12, seed=3)
    trace = traced(small, heads, small_prompt(4), text)
    cache = small.new_cache(slots=1, capacity=64)
    states = small.prefill([*small_prompt(4), *text[:-1]], 0, cache).hidden[3:]
    for at in range(len(text) - heads.num_heads):
        for head in range(heads.num_heads):
            logits = published.logits(head, states[at : at + 1], torch.tensor([text[at : at + head + 1]]))[0]
            ranking = heads.draft_vocab[logits.argsort(descending=True)].tolist()
            true = text[at + head + 1]
            assert int(trace.ranks[at, head]) == ranking.index(true) if true in ranking else trace.ranks[at, head] > 99
            best = logits.log_softmax(-1).topk(TRACED_RANKS).values
            torch.testing.assert_close(trace.confidence[at, head], best, atol=1e-4, rtol=1e-4)


def policies() -> list[Policy]:
    """Drafting of whole trees, and expansion level by level."""
    grows = small_dynamic_policy(1e-3, 1e-3)
    return [StaticPolicy(TREE, 8), grows]


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_text_is_the_models_own(layout: str, small: Backbone, tmp_path: Path) -> None:
    heads = imported(LAYOUTS[layout](model_of(small)), small, tmp_path)
    for policy in policies():
        done = single_engine(small, heads, policy).generate(small_prompt(9), 30)
        assert done.tokens == greedy(small.model, small_prompt(9), 30)
        assert done.tau > 1, "nothing was accepted: the case shows nothing"


@pytest.mark.parametrize("layout", ["medusa, two layers", "vLLM, one output", "hydra, four layers"])
def test_steps_replay_as_graphs(layout: str, small: Backbone, tmp_path: Path) -> None:
    state = DecodingState(small, imported(LAYOUTS[layout](model_of(small)), small, tmp_path), slots=1, capacity=128)
    state.graphs = Graphs(Taped())
    prompt = small_prompt(9)
    root, entropy = state.prefill(0, prompt)
    policy = SequencePolicy([TREE, TREES["chain"], TREES["wide"], TREES["root"]], 8)
    request = bare_sequence(0, policy, root, entropy)
    while len(request.tokens) < 40:
        decode_step(state, policy, [request])
    assert request.tokens == greedy(small.model, prompt, len(request.tokens))
    assert state.graphs.disabled_reason is None
    assert 0 < state.graphs.captures < 30


@pytest.mark.parametrize("layout", ["medusa, legacy", "vLLM, biased", "hydra"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_they_keep_the_type_that_they_were_saved_in(
    layout: str, dtype: torch.dtype, exact: Backbone, tmp_path: Path
) -> None:
    published = LAYOUTS[layout](model_of(exact))
    published.tensors.update({name: tensor.to(dtype) for name, tensor in published.tensors.items()})
    heads: Any = imported(published, exact, tmp_path)
    assert heads.block_bias.dtype == torch.float32, "the model's"
    saved = (tmp_path / "ours" / "model.safetensors").stat().st_size
    numbers = sum(weight.numel() for weight in heads.parameters())
    assert saved < 2 * numbers + 4 * exact.vocab_size + 4096
    name = next(name for name in published.tensors if name.endswith(("0.0.linear.bias", "0.layers.0.bias")))
    if layout != "hydra":
        assert torch.equal(heads.block_bias[0, 0], published.tensors[name].float())


def test_heads_of_a_model_whose_output_they_use_hold_no_second_copy(exact: Backbone, tmp_path: Path) -> None:
    heads = imported(LAYOUTS["medusa, legacy"](model_of(exact)), exact, tmp_path)
    assert isinstance(heads.output_weight, torch.Tensor)
    assert heads.output_weight.data_ptr() == exact.model.get_output_embeddings().weight.data_ptr()
