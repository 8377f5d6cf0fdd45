"""How each suite asks and when an answer ends: prompt template, token budget, stop texts, score and tree bank.

This table is the one place for all of it; ``docs/suites.md`` explains the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from entmtp.trees.bank import MIXED


@dataclass(frozen=True)
class Protocol:
    """One row of the table.

    Attributes:
        template: the user's message, of the row's fields (for :meth:`str.format`); the model's chat template is put
            around it.
        max_new_tokens: an answer's budget; a benchmark that allows more is cut to it.
        stop: texts that end an answer, beside the model's own end of text.
        score: name of the task's own score; None where no automatic score exists.
        bank: the task whose tree bank is used where there is none of the suite's own name.
    """

    template: str
    max_new_tokens: int
    stop: tuple[str, ...]
    score: str | None
    bank: str

    def tokens(self, asked: int) -> int:
        """New tokens of an answer, at most, where a benchmark asks for so many."""
        return min(asked, self.max_new_tokens)


_CODE = "Complete this Python function:\n\n```python\n{prompt}\n```"
_TASK = "Write a Python function for this task:\n\n{task}\n\nIt must pass these tests:\n\n```python\n{tests}\n```"
_BOXED = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_SHOTS = "{shots}Question: {question}\nAnswer:"

# fmt: off
PROTOCOLS: dict[str, Protocol] = {
    #                        template        tokens  stop            score          bank
    "humaneval":    Protocol(_CODE,          1024,   (),             "pass@1",      "humaneval"),
    "gsm8k":        Protocol("{question}",   1024,   (),             "exact match", "gsm8k"),
    "gsm8k-N-shot": Protocol(_SHOTS,         1024,   ("Question:",), "exact match", "gsm8k"),
    "sharegpt":     Protocol("{value}",      1024,   (),             None,          "sharegpt"),
    "litbench":     Protocol("{prompt}",     2048,   (),             None,          "litbench"),
    "math500":      Protocol(_BOXED,         2048,   (),             "exact match", MIXED),
    "mbpp":         Protocol(_TASK,          1024,   (),             "pass@1",      MIXED),
    "speed-bench":  Protocol("{turn}",       4096,   (),             None,          MIXED),
    "mt-bench":     Protocol("{turn}",       1024,   (),             None,          MIXED),
    "spec-bench":   Protocol("{turn}",       1024,   (),             None,          MIXED),
    "custom":       Protocol("{prompt}",     4096,   (),             None,          MIXED),
}
# fmt: on
SHOT = "Question: {question}\nAnswer: {answer}\n\n"
"""One worked example of ``gsm8k-N-shot``."""
