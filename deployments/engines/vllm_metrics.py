"""The metrics under vLLM's names, for dashboards, autoscalers and load generators that read those (AIPerf, KEDA, …)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deployments.engines.metric_definition import PREFIX

VLLM_NAMES: dict[str, tuple[str, ...]] = {
    "num_requests_running": ("num_requests_running",),
    "num_requests_waiting": ("num_requests_waiting",),
    "kv_cache_usage_perc": ("kv_cache_usage_perc",),
    "prompt_tokens": ("prompt_tokens", "prefix_cache_queries"),
    "prefix_cache_hits": ("prefix_cache_hits",),
    "generation_tokens": ("generation_tokens",),
    "request_success": ("request_success",),
    "time_to_first_token_seconds": ("time_to_first_token_seconds",),
    # vLLM's older releases call the second one by the third name.
    "time_per_output_token_seconds": ("request_time_per_output_token_seconds",),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "e2e_request_latency_seconds": ("e2e_request_latency_seconds",),
    "request_queue_time_seconds": ("request_queue_time_seconds",),
    "spec_decode_num_drafts": ("spec_decode_num_drafts",),
    "spec_decode_num_draft_tokens": ("spec_decode_num_draft_tokens",),
    "spec_decode_num_accepted_tokens": ("spec_decode_num_accepted_tokens",),
    "spec_decode_num_accepted_tokens_per_pos": ("spec_decode_num_accepted_tokens_per_pos",),
}
"""vLLM's names of our metrics with the same meaning; both sides without prefix and without a counter's ``_total``."""

_SAMPLE = re.compile(rf"(?:# (?:HELP|TYPE) )?ray_{PREFIX}(\w+?)(_total|_bucket|_sum|_count)?(?=[ {{]).*")
_ENGINE = re.compile(r'\{(.*?)engine="([^"]*)"')


def vllm_lines(text: str, models: Mapping[str, str]) -> str:
    """Lines of the service's metrics ``text`` under vLLM's names, with the label ``model_name``.

    Args:
        models: served model of each engine.
    """
    renamed: dict[str, list[str]] = {}
    for line in text.splitlines():
        found = _SAMPLE.fullmatch(line)
        ours = found[1] if found else ""
        for name in VLLM_NAMES.get(ours, ()):
            renamed.setdefault(name, []).append(_renamed(line, ours, name, models))
    return "".join(f"{line}\n" for lines in renamed.values() for line in lines)


def _renamed(line: str, ours: str, theirs: str, models: Mapping[str, str]) -> str:
    line = line.replace(f"ray_{PREFIX}{ours}", f"vllm:{theirs}", 1)
    return _ENGINE.sub(lambda found: f'{{model_name="{models.get(found[2], "")}",{found[0][1:]}', line, count=1)


def unfinished_requests(text: str) -> int:
    """Number of requests that run or wait, over all engines, in the service's metrics ``text``."""
    names = tuple(f"ray_{PREFIX}num_requests_{state}" for state in ("running", "waiting"))
    return round(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(names)))
