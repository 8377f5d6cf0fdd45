"""OpenAI's ``usage`` of a response, with this service's extension ``speculation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails

from deployments.protocol.messages import prompt_tokens
from deployments.settings import EngineArgs
from entmtp.decoding.outputs import RequestOutput, RequestStats
from entmtp.decoding.request import Request
from entmtp.methods import policy_of


def usage_of(engine: EngineArgs, requests: Sequence[Request], answers: Sequence[RequestOutput]) -> CompletionUsage:
    """Usage of all answers to a body together; ``tau`` counts the root's token, so plain decoding is 1."""
    all_stats = [one.stats for one in answers if one.stats is not None]
    totals = usage_so_far(requests, answers)
    return CompletionUsage.model_validate(
        {
            **totals.model_dump(exclude_unset=True),
            "prompt_tokens_details": PromptTokensDetails(cached_tokens=_cached_tokens(requests, answers)),
            "speculation": _speculation(engine, totals.completion_tokens, all_stats),
        }
    )


def usage_so_far(requests: Sequence[Request], answers: Sequence[RequestOutput]) -> CompletionUsage:
    """Usage of unfinished answers: numbers of tokens only."""
    read, new = prompt_tokens(requests), sum(len(one.tokens) for one in answers)
    return CompletionUsage(prompt_tokens=read, completion_tokens=new, total_tokens=read + new)


def _cached_tokens(requests: Sequence[Request], answers: Sequence[RequestOutput]) -> int:
    """Prompt tokens that every answer took from the prefix cache; each prompt counts once, as in ``prompt_tokens``."""
    fewest: dict[int, int] = {}
    for request, answer in zip(requests, answers, strict=True):
        if answer.stats is not None:
            reused = answer.stats.reused_tokens
            fewest[request.prompt_index] = min(reused, fewest.get(request.prompt_index, reused))
    return sum(fewest.values())


def _speculation(engine: EngineArgs, new_tokens: int, all_stats: Sequence[RequestStats]) -> dict[str, Any]:
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
