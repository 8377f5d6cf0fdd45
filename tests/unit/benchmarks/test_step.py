"""The roofline's arithmetic, on a tiny model; its times are not tested."""

from functools import partial

from benchmarks.step import Bench, Machine, multiplied, tree_of
from entmtp.decoding.measure import PARTS, interleaved
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from tests.tiny import random_heads, tiny_model

UNIT = Machine(bytes_per_ms=1, multiply_adds_per_ms=1)


def bench(nodes: int, batch: int, context: int) -> Bench:
    backbone = Backbone(tiny_model("llama"))
    heads: DraftHeads = random_heads("hydra", backbone).attach(backbone)
    return Bench(backbone, heads, tree_of(nodes), batch, context)


def test_operations_grow_with_tokens_and_bytes_do_not() -> None:
    parameters = 1000
    plain, tree = bench(0, 1, 20), bench(7, 1, 20)
    _, plain_operations = plain.floors(UNIT, parameters)
    tree_bytes, tree_operations = tree.floors(UNIT, parameters)
    assert tree_operations == 8 * plain_operations
    more_bytes, more_operations = bench(7, 3, 20).floors(UNIT, parameters)
    assert more_operations == 3 * tree_operations
    config = tree.backbone.config
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 20
    assert more_bytes - tree_bytes == 4 * 2 * cached


def test_an_embedding_table_of_its_own_is_looked_up_not_multiplied() -> None:
    tied, untied = (tiny_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    assert multiplied(tied) == multiplied(untied) == sum(weight.numel() for weight in tied.parameters())


def test_steps_start_from_the_same_state_and_time_every_part() -> None:
    benches = {nodes: bench(nodes, 2, 9) for nodes in (0, 3)}
    steps = {nodes: partial(one.step, one.policy) for nodes, one in benches.items()}
    for parts in interleaved(steps, repetitions=3).values():
        assert set(parts) == set(PARTS)
        assert all(ms >= 0 for ms in parts.values())
    assert all(one.state.cache.lengths == [9, 9] for one in benches.values())
