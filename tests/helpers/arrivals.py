"""Requests that come while others run, in an order of chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.settings import SamplingParams


def come_and_go(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    rng: random.Random,
    between: Callable[[], None] = lambda: None,
) -> dict[int, Completion]:
    """Serves greedily, each prompt for so many tokens, until all are done; request ids are the prompts' numbers.

    ``between`` is called before each step.
    """
    done, waiting = {}, list(range(len(prompts)))
    while waiting or not engine.idle:
        while waiting and rng.random() < 0.5:
            at = waiting.pop(0)
            params = SamplingParams(temperature=0.0, max_tokens=lengths[at])
            done[at] = engine.submit(Request(str(at), prompts[at], params))
        between()
        engine.step()
    return done
