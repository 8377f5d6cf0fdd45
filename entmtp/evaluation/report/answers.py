"""Answers of every arm as JSON lines for a judge: the conversation, the answer, and its score if it has one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from entmtp.files import write_text
from entmtp.suites.base import Message, Prompt


def write_answers(
    path: Path, prompts: Sequence[Prompt], histories: Mapping[str, Sequence[Message]], requests: pa.Table
) -> Path:
    """Write one line for each arm's answer to each prompt, from the first repetition.

    Args:
        histories: by prompt id, the messages before the prompt with the model's answers where it gave some.
        requests: rows, as `rows.read_parts` gives them.
    """
    by_id = {(prompt.suite, prompt.id): prompt for prompt in prompts}
    first = requests.filter(pc.field("repetition") == 0).select(["suite", "prompt_id", "arm", "text", "score"])
    lines = []
    for row in first.to_pylist():
        if (prompt := by_id.get((row["suite"], row["prompt_id"]))) is not None:
            lines.append(_line(prompt, histories.get(prompt.id, ()), row))
    return write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _line(prompt: Prompt, history: Sequence[Message], row: Mapping[str, Any]) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in (*history, ("user", prompt.text))]
    return {
        "suite": prompt.suite,
        "prompt_id": prompt.id,
        "arm": row["arm"],
        "messages": messages,
        "answer": row["text"],
        "score": row["score"],
        "reference": dict(prompt.reference),
    }
