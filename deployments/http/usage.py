"""What an answer has cost, as OpenAI's ``usage`` with this service's extension ``speculation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails

from deployments.engines.client import Work
from deployments.protocol.messages import Account
from deployments.protocol.responses import Answer
from deployments.settings import EngineArgs
from entmtp.methods import policy_of


def usage_of(work: Work, answers: Sequence[Answer]) -> CompletionUsage:
    """Of all answers to a request together; ``tau`` counts the root's token, so plain decoding is 1."""
    accounts = [one.account for one in answers if one.account is not None]
    prompt_tokens, new_tokens = work.prompt_tokens, sum(len(one.tokens) for one in answers)
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
            "prompt_tokens_details": PromptTokensDetails(cached_tokens=_cached_tokens(work, answers)),
            "speculation": _speculation(work.engine, new_tokens, accounts),
        }
    )


def usage_so_far(work: Work, answers: Sequence[Answer]) -> CompletionUsage:
    """Tokens alone, while the answers are still written."""
    prompt_tokens, new_tokens = work.prompt_tokens, sum(len(one.tokens) for one in answers)
    return CompletionUsage(
        prompt_tokens=prompt_tokens, completion_tokens=new_tokens, total_tokens=prompt_tokens + new_tokens
    )


def _cached_tokens(work: Work, answers: Sequence[Answer]) -> int:
    """Prompt tokens that were read for none of the answers; each prompt counts once, as in ``prompt_tokens``."""
    fewest: dict[int, int] = {}
    for call, answer in zip(work.calls, answers, strict=True):
        if answer.account is not None:
            reused = answer.account.reused_tokens
            fewest[call.prompt_number] = min(reused, fewest.get(call.prompt_number, reused))
    return sum(fewest.values())


def _speculation(engine: EngineArgs, new_tokens: int, accounts: Sequence[Account]) -> dict[str, Any]:
    steps = sum(one.steps for one in accounts)
    deepest = max((len(one.accepted_by_depth) for one in accounts), default=0)
    by_depth = [
        sum(one.accepted_by_depth[depth] for one in accounts if depth < len(one.accepted_by_depth))
        for depth in range(deepest)
    ]
    parts = accounts[0].part_ms if accounts else {}
    method = accounts[0].method if accounts else engine.method
    return {
        "method": method,
        "policy": policy_of(method),
        "task": accounts[0].task if accounts else engine.task,
        "tau": round(new_tokens / max(1, steps), 4),
        "steps": steps,
        "drafted": sum(one.drafted for one in accounts),
        "accepted": sum(one.accepted for one in accounts),
        "accepted_by_depth": by_depth,
        "ms": {part: round(sum(one.part_ms[part] for one in accounts), 3) for part in parts}
        | {
            "waiting": round(max((one.waiting_ms for one in accounts), default=0.0), 3),
            "first_token": round(min((one.first_token_ms for one in accounts), default=0.0), 3),
        },
    }
