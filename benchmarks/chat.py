#!/usr/bin/env python3
"""Effect of prefix reuse on the turns of a chat: time to the first token (TTFT) with reuse and without.

    python -m benchmarks.chat

The user's message is the same in every turn, so only the chat before it gets longer. Both settings run on every chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import Toolbox, make_policy
from entmtp.intervals import paired_ratio, ratio
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import scored_prompts

FOLLOW_UP = "Please say that once more in other words, with an example that a child would understand."


def main(
    chats: Annotated[int, typer.Option(min=3, help="chats; an interval needs three")] = 6,
    turns: Annotated[int, typer.Option(min=2, help="turns of each")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens per answer")] = 48,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print TTFT by turn with and without reuse, and their ratio with its 95% interval over chats."""
    with plain_errors("chat", "nothing was recorded"):
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        backbone = build_backbone(model)
        policy = make_policy("autoregressive", Toolbox(backbone, {}, {}, {}))
        openings = [prompt.text for prompt in scored_prompts("sharegpt", chats)]
        found: dict[bool, list[list[Completion]]] = {True: [], False: []}
        for number, opening in enumerate(openings):
            for reuse in (True, False) if number % 2 else (False, True):
                settings = EngineSettings(slots=2, context=4096, prefix_reuse=reuse)
                engine = Engine(backbone, None, policy, settings, tokenizer.backend_tokenizer)
                found[reuse].append(_chat(engine, tokenizer, opening, turns, max_new_tokens))
        for chat, other in zip(found[True], found[False], strict=True):
            if [answer.tokens for answer in chat] != [answer.tokens for answer in other]:
                raise EntMTPError(
                    "chat: an answer is another with reuse than without; these numbers would mean nothing"
                )
        table = Table(title="time to first token", columns=_columns(), rows=_rows(found, turns))
        notes = [
            "The first turn is the opening, the others ask the same short question; answers are greedy.",
            f"{chats} chats; all answers were the same with and without reuse, or this would have ended with an error.",
        ]
        deliver(
            make_record("chat", "Turns of a chat", hardware_name(backbone.device), [table], notes), record, uncommitted
        )


def _chat(engine: Engine, tokenizer: Any, opening: str, turns: int, max_new_tokens: int) -> list[Completion]:
    params = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
    messages = [{"role": "user", "content": opening}]
    answers = []
    for turn in range(turns):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        done = engine.submit(Request(str(turn), prompt, params))
        while not engine.idle:
            engine.step()
        answers.append(done)
        messages += [{"role": "assistant", "content": done.text}, {"role": "user", "content": FOLLOW_UP}]
    return answers


def _columns() -> list[str]:
    return [
        "turn",
        "TTFT with reuse, ms",
        "without, ms",
        "of the prompt read",
        "without over with",
        "with: over turn 2",
    ]


def _rows(found: dict[bool, list[list[Completion]]], turns: int) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for turn in range(turns):
        with_reuse, without = (_ttft(found[reuse], turn) for reuse in (True, False))
        reused = np.mean([chat[turn].reused_tokens for chat in found[True]])
        rows.append(
            [
                turn + 1,
                f"{1e3 * with_reuse.mean():.0f}",
                f"{1e3 * without.mean():.0f}",
                f"all but {reused:.0f} tokens",
                ratio(paired_ratio(without, with_reuse).estimate()),
                ratio(paired_ratio(with_reuse, _ttft(found[True], 1)).estimate()) if turn > 1 else "",
            ]
        )
    return rows


def _ttft(chats: Sequence[Sequence[Completion]], turn: int) -> np.ndarray:
    return np.array([chat[turn].first_token_seconds for chat in chats])


if __name__ == "__main__":
    typer.run(main)
