"""Table of the suites' protocols: prompt template, token budget, stop texts, score and tree bank.

``docs/suites.md`` explains its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

MIXED = "mixed"
"""Task of a tree bank that is made from all suites together."""


@dataclass(frozen=True)
class Protocol:
    """One row of the table.

    Attributes:
        template: format string of the user's message, with the row's fields. The result goes into the model's chat
            template.
        max_new_tokens: token budget of an answer, also in benchmarks that allow more.
        stop: stop strings of an answer, in addition to the model's end-of-text token.
        score: name of the task's score; None without an automatic score.
        bank: the task whose tree bank is used if there is none for the suite itself.
    """

    template: str
    max_new_tokens: int
    stop: tuple[str, ...]
    score: str | None
    bank: str

    def token_budget(self, requested: int) -> int:
        """The requested number of new tokens, limited to the suite's budget."""
        return min(requested, self.max_new_tokens)


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
