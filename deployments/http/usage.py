"""OpenAI's ``usage`` of a response, with this service's extension ``speculation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails

from deployments.engines.client import RoutedRequest
from deployments.protocol.messages import Answer, SpeculationStats
from deployments.settings import EngineArgs
from entmtp.methods import policy_of


def usage_of(routed: RoutedRequest, answers: Sequence[Answer]) -> CompletionUsage:
    """Usage of all answers to a request together; ``tau`` counts the root's token, so plain decoding is 1."""
    all_stats = [one.stats for one in answers if one.stats is not None]
    prompt_tokens, new_tokens = routed.prompt_tokens, sum(len(one.tokens) for one in answers)
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
            "prompt_tokens_details": PromptTokensDetails(cached_tokens=_cached_tokens(routed, answers)),
            "speculation": _speculation(routed.engine, new_tokens, all_stats),
        }
    )


def usage_so_far(routed: RoutedRequest, answers: Sequence[Answer]) -> CompletionUsage:
    """Usage of unfinished answers: numbers of tokens only."""
    prompt_tokens, new_tokens = routed.prompt_tokens, sum(len(one.tokens) for one in answers)
    return CompletionUsage(
        prompt_tokens=prompt_tokens, completion_tokens=new_tokens, total_tokens=prompt_tokens + new_tokens
    )


def _cached_tokens(routed: RoutedRequest, answers: Sequence[Answer]) -> int:
    """Prompt tokens that every answer took from the prefix cache; each prompt counts once, as in ``prompt_tokens``."""
    fewest: dict[int, int] = {}
    for call, answer in zip(routed.calls, answers, strict=True):
        if answer.stats is not None:
            reused = answer.stats.reused_tokens
            fewest[call.prompt_number] = min(reused, fewest.get(call.prompt_number, reused))
    return sum(fewest.values())


def _speculation(engine: EngineArgs, new_tokens: int, all_stats: Sequence[SpeculationStats]) -> dict[str, Any]:
    steps = sum(one.steps for one in all_stats)
    deepest = max((len(one.accepted_by_depth) for one in all_stats), default=0)
    by_depth = [
        sum(one.accepted_by_depth[depth] for one in all_stats if depth < len(one.accepted_by_depth))
        for depth in range(deepest)
    ]
    parts = all_stats[0].part_ms if all_stats else {}
    method = all_stats[0].method if all_stats else engine.method
    return {
        "method": method,
        "policy": policy_of(method),
        "task": all_stats[0].task if all_stats else engine.task,
        "tau": round(new_tokens / max(1, steps), 4),
        "steps": steps,
        "drafted": sum(one.drafted for one in all_stats),
        "accepted": sum(one.accepted for one in all_stats),
        "accepted_by_depth": by_depth,
        "ms": {part: round(sum(one.part_ms[part] for one in all_stats), 3) for part in parts}
        | {
            "waiting": round(max((one.waiting_ms for one in all_stats), default=0.0), 3),
            "first_token": round(min((one.first_token_ms for one in all_stats), default=0.0), 3),
        },
    }
