"""The roofline's arithmetic, on a tiny model; its times are not tested."""

from benchmarks.step import PARTS, Bench, Machine, interleaved, multiplied, tree_of
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
    cached = 2 * sum(layer.keys[:, :, :20].numel() for layer in tree.cache.tree_layers if layer.keys is not None)
    assert more_bytes - tree_bytes == 4 * 2 * cached


def test_an_embedding_table_of_its_own_is_looked_up_not_multiplied() -> None:
    tied, untied = (tiny_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    assert multiplied(tied) == multiplied(untied) == sum(weight.numel() for weight in tied.parameters())


def test_steps_start_from_the_same_state_and_time_every_part() -> None:
    benches = {nodes: bench(nodes, 2, 9) for nodes in (0, 3)}
    for parts in interleaved(benches, repetitions=3).values():
        assert set(parts) == set(PARTS)
        assert all(ms >= 0 for ms in parts.values())
    assert all(one.cache.lengths == [9, 9] for one in benches.values())
