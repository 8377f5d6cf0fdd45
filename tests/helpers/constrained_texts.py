"""Tiny engines that write constrained texts: a byte-level tokenizer, a random model, heads that guess now and then."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.base import Policy
from entmtp.policies.eagle2 import Eagle2Policy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.structured import Structured
from entmtp.trees.topology import Topology
from tests.helpers.sampled_texts import WIDE
from tests.helpers.small_cases import small_cost, small_dynamic_policy, small_predictor
from tests.helpers.tiny_models import random_heads, tiny_model
from tests.helpers.tokenizers import byte_level

CONTEXT = 640
MAX_TOKENS = 500
PROMPT = [40, 41, 42]
POLICIES: dict[str, Policy] = {
    "none": StaticPolicy(Topology.root_only(), 8),
    "static": StaticPolicy(WIDE, 8),
    "goodput": GoodputPolicy(small_predictor(), FixedCost(lambda batch, context: small_cost()), 8),
    "dynamic": small_dynamic_policy(),
    "eagle2": Eagle2Policy(8),
}


@cache
def json_tokenizer() -> Tokenizer:
    """Every byte, and words as JSON has them."""
    return byte_level(('{"', '": ', '": "', '", "', '"}', "true", "null", ", ", " [", "name", "na", "ab", "12"))


@cache
def letter_tokenizer(letters: str) -> Tokenizer:
    """A token for each of the letters."""
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@cache
def json_backbone(end: int | None = None) -> Backbone:
    """A tiny model over the tokens of :func:`json_tokenizer`, and three that the tokenizer lacks."""
    size = json_tokenizer().get_vocab_size() + 3
    return build_backbone(tiny_model("llama", vocab_size=size, max_position_embeddings=CONTEXT, eos_token_id=end))


@cache
def json_heads(kind: str = "hydra") -> DraftHeads:
    size = json_backbone().vocab_size
    return random_heads(kind, json_backbone(), vocab_size=size, draft_vocab_size=96).attach(json_backbone())


def engine_of(policy: str = "dynamic", slots: int = 4, tokenizer: Tokenizer | None = None) -> Engine:
    """An engine with one of the :data:`POLICIES`; none of them has state beyond its requests'."""
    settings = EngineSettings(slots=slots, context=CONTEXT, prefix_reuse=False)
    heads = None if policy == "none" else json_heads()
    return Engine(json_backbone(), heads, POLICIES[policy], settings, tokenizer or json_tokenizer())


def written(
    engine: Engine, *params: SamplingParams, max_nodes: int | None = None, prompt: Sequence[int] = PROMPT
) -> list[Completion]:
    """Answers to requests that run together."""
    done = [
        engine.submit(Request(f"{at}", prompt, one, max_nodes=max_nodes, prompt_index=0))
        for at, one in enumerate(params)
    ]
    while not engine.idle:
        engine.step()
    return done


def params_of(structured: Structured | None, **more: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": MAX_TOKENS, "seed": 1, "structured": structured} | more))


_NAMES = st.sampled_from(["a", "b", "name", "é", 'q"q', "x y"])
_VALUES = st.sampled_from([None, True, 0, -3, 1.5, "", "ab", "é", 'say "hi"', [1, "x"], {"a": None}])


def _bounded(draw: st.DrawFn, low: int, high: int, names: tuple[str, str]) -> dict[str, int]:
    least = draw(st.integers(low, high))
    return {names[0]: least, names[1]: draw(st.integers(least, high))}


@st.composite
def _strings(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"type": "string", "pattern": draw(st.sampled_from(["^a{1,3}$", "^[0-9]{2}-[a-c]$", "^(yes|no)$"]))}
    if draw(st.booleans()):
        return {"type": "string", "format": draw(st.sampled_from(["date", "uuid", "ipv4"]))}
    return {"type": "string", **_bounded(draw, 0, 4, ("minLength", "maxLength"))}


@st.composite
def _objects(draw: st.DrawFn, children: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    names = draw(st.lists(_NAMES, max_size=3, unique=True))
    required = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    properties = {name: draw(children) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _arrays(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def arrays(draw: st.DrawFn) -> dict[str, Any]:
        return {"type": "array", "items": draw(children), **_bounded(draw, 0, 3, ("minItems", "maxItems"))}

    return arrays()


@st.composite
def _integers(draw: st.DrawFn) -> dict[str, Any]:
    return {"type": "integer", **_bounded(draw, -300, 300, ("minimum", "maximum"))}


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of which every value has a bounded length."""
    leaves = st.one_of(
        _strings(),
        _integers(),
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        _VALUES.map(lambda value: {"const": value}),
        st.lists(_VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    )
    return st.recursive(
        leaves,
        lambda children: st.one_of(
            _objects(children),
            _arrays(children),
            st.lists(children, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
        ),
        max_leaves=4,
    )
