"""Cache rows after a text's own: as many as the widest tree of any policy needs, up to the context's last token."""

from __future__ import annotations

import pytest

from entmtp.decoding.engine import Engine
from entmtp.decoding.graphs import Graphs
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import RequestPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings
from entmtp.trees.topology import Path, Topology
from tests.helpers.heads_with_caches import DRAFT_CACHE_KINDS, draft_cache_heads, draft_cache_model
from tests.helpers.small_cases import SMALL_VOCAB, small_backbone, small_dynamic_policy, small_heads, small_prompt
from tests.helpers.small_fixtures import backbone_of_model
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import TREES, greedy

__all__ = ["backbone_of_model"]

SETTINGS = EngineSettings(slots=1, context=40, prefill_tokens=40)


def tree_of(nodes: int) -> Topology:
    """The first nodes of a tree in which every token may be followed by any two."""
    paths: list[Path] = [(rank,) for rank in range(SMALL_VOCAB)]
    for path in paths:
        if len(path) < 4:
            paths += [(*path, rank) for rank in range(4)]
    return Topology.of(paths[:nodes])


def rows(engine: Engine) -> int:
    return engine.runner.state.capacity


@pytest.mark.parametrize(("nodes", "spare"), [(0, 64), (1, 64), (63, 64), (64, 128), (100, 128), (150, 192)])
@pytest.mark.parametrize("captured", [False, True])
def test_a_text_fills_the_context_whatever_its_trees(nodes: int, spare: int, captured: bool) -> None:
    backbone = small_backbone(kernels="eager")
    tree = tree_of(nodes) if nodes else Topology.root_only()
    engine = Engine(backbone, small_heads("hydra", backbone), StaticPolicy(tree, 8), SETTINGS)
    assert rows(engine) == 40 + spare
    if captured:
        engine.runner.state.graphs = Graphs(Taped())
    prompt = small_prompt(20)
    done = engine.generate(prompt, 20)
    assert done.tokens == greedy(backbone.model, prompt, 20)
    assert engine.runner.state.graphs.disabled_reason is None


@pytest.fixture(scope="module", params=DRAFT_CACHE_KINDS)
def model(request: pytest.FixtureRequest) -> object:
    return draft_cache_model(request.param)


def test_heads_with_a_draft_cache_have_room_of_their_own(backbone: Backbone, request: pytest.FixtureRequest) -> None:
    heads = draft_cache_heads(request.node.callspec.params["model"], backbone)
    policy = small_dynamic_policy(1e-3, 1e-3)
    engine = Engine(backbone, heads, policy, SETTINGS)
    state = engine.runner.state
    assert (state.capacity, state.cache.capacity) == (104, 104 + heads.cache_layout.spare_rows)
    done = engine.generate(small_prompt(20), 20)
    assert done.tokens == greedy(backbone.model, small_prompt(20), 20)


class Unbounded(RequestPolicy):
    """Says nothing of its largest tree."""

    entropy_window = 8

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        return TREES["bushy"].truncated(limit)


def test_a_policy_that_names_no_largest_tree_may_have_any(backbone_and_heads: tuple[Backbone, DraftHeads]) -> None:
    assert rows(Engine(*backbone_and_heads, Unbounded(), SETTINGS)) == 40 + 256


def test_a_policy_with_larger_trees_is_refused_and_changes_nothing(
    backbone_and_heads: tuple[Backbone, DraftHeads],
) -> None:
    plain, wide = StaticPolicy(Topology.root_only(), 8), StaticPolicy(tree_of(64), 8)
    engine = Engine(*backbone_and_heads, plain, SETTINGS)
    engine.reconfigure(StaticPolicy(tree_of(63), 8), SETTINGS)
    before = engine.policy
    with pytest.raises(EntMTPError, match=r"^policy: its largest tree has 64 nodes, .* allocated for 63; start "):
        engine.reconfigure(wide, SETTINGS.model_copy(update={"prefill_tokens": 7}))
    assert engine.policy is before
    assert engine.settings is SETTINGS
    roomy = Engine(*backbone_and_heads, plain, SETTINGS, max_nodes=64)
    roomy.reconfigure(wide, SETTINGS)
    done = roomy.generate(small_prompt(20), 20)
    assert done.tokens == greedy(roomy.backbone.model, small_prompt(20), 20)


@pytest.fixture(scope="module")
def backbone_and_heads() -> tuple[Backbone, DraftHeads]:
    backbone = small_backbone()
    return backbone, small_heads("hydra", backbone)
