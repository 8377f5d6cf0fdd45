import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.decoding.slots import Slots
from entmtp.models.cache import BufferShape, TreeCache

SHAPE = BufferShape(1, 2)


def cache(slots: int = 3) -> TreeCache:
    return TreeCache([(SHAPE, SHAPE)], slots, 32)


def fill(slots: Slots, tree_cache: TreeCache, slot: int, tokens: list[int]) -> None:
    """Write tokens as a prefill does: each token's keys are its own id."""
    begin = tree_cache.lengths[slot]
    for pool in tree_cache.pools.values():
        for at, token in enumerate(tokens):
            pool[:, slot, :, begin + at + 1] = float(token)
    tree_cache.append([slot], [len(tokens)])
    slots.append(slot, tokens)


def cached_tokens(tree_cache: TreeCache, slot: int) -> list[int]:
    (pool,) = tree_cache.pools.values()
    return pool[0, slot, 0, 1 : tree_cache.lengths[slot] + 1, 0].long().tolist()


def test_a_prompt_that_begins_as_an_earlier_text_goes_on_from_there() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    slot, read = slots.acquire([1, 2, 3])
    assert read == 0
    fill(slots, tree_cache, slot, [1, 2, 3, 4, 5])
    slots.release(slot)
    again, read = slots.acquire([1, 2, 3, 4, 9, 9])
    assert (again, read) == (slot, 4)
    assert cached_tokens(tree_cache, again) == [1, 2, 3, 4]


def test_what_another_request_still_uses_is_copied() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    first, _ = slots.acquire([1, 2, 3])
    fill(slots, tree_cache, first, [1, 2, 3])
    second, read = slots.acquire([1, 2, 7])
    assert second != first
    assert read == 2
    assert (cached_tokens(tree_cache, first), cached_tokens(tree_cache, second)) == ([1, 2, 3], [1, 2])


def test_the_last_token_of_a_prompt_is_always_read_again() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    slot, _ = slots.acquire([1, 2])
    fill(slots, tree_cache, slot, [1, 2])
    slots.release(slot)
    assert slots.acquire([1, 2])[1] == 1


def test_without_reuse_every_prompt_is_read_whole() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=False)
    slot, _ = slots.acquire([1, 2, 3])
    fill(slots, tree_cache, slot, [1, 2, 3])
    slots.release(slot)
    assert slots.acquire([1, 2, 3])[1] == 0


def test_a_stranger_takes_the_slot_that_was_used_longest_ago() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    taken = [slots.acquire([10 * at, 1])[0] for at in range(3)]
    for at, slot in enumerate(taken):
        fill(slots, tree_cache, slot, [10 * at, 1])
    for slot in (taken[1], taken[2], taken[0]):
        slots.release(slot)
    assert slots.acquire([99, 98])[0] == taken[1]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_slot_always_has_the_prompt_it_reports(prompts: list[list[int]], rng: random.Random) -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    taken: list[int] = []
    for prompt in prompts:
        if not slots.free:
            slots.release(taken.pop(rng.randrange(len(taken))))
        slot, read = slots.acquire(prompt)
        assert slot not in taken
        assert read < len(prompt)
        assert cached_tokens(tree_cache, slot) == prompt[:read]
        fill(slots, tree_cache, slot, prompt[read:])
        assert cached_tokens(tree_cache, slot) == prompt
        taken.append(slot)
    assert slots.tokens == sum(tree_cache.lengths[slot] for slot in taken)
    assert torch.equal(tree_cache.table.device_lengths, torch.tensor(tree_cache.lengths))


@given(st.sets(st.integers(0, 7)))
def test_exchanges_make_the_running_slots_the_first(running: set[int]) -> None:
    slots = Slots(cache(8), reuse=True)
    order = list(range(8))
    exchanges = slots.compaction_swaps(sorted(running))
    for one, other in exchanges:
        order[one], order[other] = order[other], order[one]
    assert set(order[: len(running)]) == running
    assert len(exchanges) == len(running - set(range(len(running))))


def test_texts_are_found_where_they_were_exchanged_to() -> None:
    tree_cache = cache()
    slots = Slots(tree_cache, reuse=True)
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for text in texts:
        fill(slots, tree_cache, slots.acquire(text)[0], text)
    tree_cache.swap(0, 1)
    slots.swap(0, 1)
    assert [cached_tokens(tree_cache, slot) for slot in (1, 0)] == texts
    assert tree_cache.table.device_lengths.tolist()[:2] == [5, 3]
    slots.release(0)
    assert slots.acquire([4, 5, 6, 9]) == (0, 3)
