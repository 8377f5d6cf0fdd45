"""Training prompts for the bundled heads: chat turns, code to complete, word problems and story ideas.

Chat turns come from a ShareGPT file; code prompts are signatures and docstrings of the installed Python libraries;
word problems and story ideas are combined from parts written for this project. The caller passes a function that
removes benchmark prompts (:mod:`entmtp.training.prompts_command`).
"""

from __future__ import annotations

import ast
import itertools
import json
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from entmtp.errors import EntMTPError
from entmtp.json_lines import Located, read_text
from entmtp.settings import PromptMixSettings

_KEY = re.compile(r'"conversations"\s*:')
"""Occurs once in each record, since quotes within texts are escaped."""

_MORE = re.compile(r'["{}\[\],:]|\s\S')
"""Matches if a text goes on after the word or number that begins here."""

_CODE_PACKAGES = ("numpy", "scipy", "torch", "pandas", "matplotlib", "networkx", "sympy")
_CODE_TEMPLATES = (
    "Complete the following Python function.\n\n```python\n{code}\n```",
    "{code}",
    "Write the body of this Python function:\n{code}",
    "Please implement the function below in Python and return only the code.\n\n{code}",
)


def chat_prompts(sharegpt: Path) -> list[str]:
    """First human turns of the conversations in a ShareGPT file (JSON list, JSON lines, or a truncated list).

    Raises:
        EntMTPError: the file can't be read or is too big; or a record is no conversation, or is broken other than by
            the end of a truncated file.
    """
    turns = []
    for where, record in _records(sharegpt):
        first = _first_human_turn(record, where).strip()
        if 8 <= len(first) <= 900:
            turns.append(first)
    return turns


def _records(path: Path) -> Iterator[Located]:
    text = read_text(path, "sharegpt:")
    decoder, at, number = json.JSONDecoder(), 0, 0
    while (at := text.find("{", at)) >= 0:
        number += 1
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and _is_truncated(error, at):
                return
            line = text.count("\n", 0, at) + 1
            raise EntMTPError(
                f"sharegpt: {path}, record {number}, line {line}: broken JSON ({error}); mend the record"
            ) from error
        yield f"{path}, record {number}", record


def _is_truncated(error: json.JSONDecodeError, at: int) -> bool:
    """Whether the file ends in the middle of the record that begins at ``at``.

    If a record is broken instead, more text follows the error, or the parser has read into the next record.
    """
    keys = itertools.islice(_KEY.finditer(error.doc, at), 2)
    ends = error.msg.startswith("Unterminated string") or _MORE.search(error.doc, error.pos) is None
    return ends and len(list(keys)) < 2


def _first_human_turn(record: dict[str, Any], where: str) -> str:
    """The text of the first human turn; '' if there is none."""
    conversation = record.get("conversations", [])
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise EntMTPError(f"sharegpt: {where}: 'conversations' is no list of objects; mend the record")
    first = next((turn.get("value") for turn in conversation if turn.get("from") == "human"), None) or ""
    if not isinstance(first, str):
        raise EntMTPError(f"sharegpt: {where}: the 'value' of its first human turn is not text; mend the record")
    return first


def code_prompts(sources: Iterable[Path], randomness: random.Random) -> list[str]:
    """Requests to complete functions from their signature and docstring."""
    prompts = []
    for source in sources:
        try:
            tree = ast.parse(source.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (code := _signature_and_docstring(node)):
                prompts.append(randomness.choice(_CODE_TEMPLATES).format(code=code))
    return prompts


def _signature_and_docstring(node: ast.FunctionDef) -> str | None:
    """The code before a public function's body; None for methods and for docstrings of unsuitable length."""
    document = ast.get_docstring(node)
    arguments = [argument.arg for argument in node.args.args]
    if not document or not 40 <= len(document) <= 500 or not arguments or "self" in arguments or node.name[0] == "_":
        return None
    body = document.replace("\n", "\n    ")
    return f'def {node.name}({ast.unparse(node.args)}):\n    """{body}\n    """\n'


_NAMES = (
    "Ana Ben Carla Dmitri Elif Farid Grace Hugo Ines Jonas Kavya Liam Mei Noor Omar Priya Quinn Rosa Sven Tara".split()
)
_THINGS = (
    "apples marbles stickers pencils books cookies shells tickets stamps flowers eggs cards bottles candles".split()
)
_PROBLEMS = (
    "{a} has {x} {t}. {b} has {k} times as many. How many {t} do they have together?",
    "A box holds {x} {t}. {a} fills {k} boxes and has {y} {t} left over. How many {t} did {a} have at the start?",
    "{a} buys {x} {t} at ${k} each and pays with a ${big} note. How much change does {a} get?",
    "Every day {a} sells {x} {t} in the morning and {y} in the afternoon. How many {t} are sold in {k} weeks?",
    "{a} runs {k} miles a day, {b} runs {y}. After {x} days, how many miles farther has the faster one run?",
    "A train goes {x} miles an hour for {k} hours and then {y} miles an hour for 2 hours. How far does it go in all?",
    "{a} had {big} {t}, gave {x} to {b}, and lost {y}. Then {a} found {k} more. How many {t} does {a} have now?",
    "There are {x} rows of chairs with {k} chairs each. {y} chairs are broken. How many people can sit down?",
    "{a} is {k} years older than {b}. In {y} years their ages will add up to {big}. How old is {b} today?",
    "A garden is {x} feet long and {k} feet wide. A fence costs ${y} a foot. What does a fence around it cost?",
    "{a} reads {x} pages an hour. A book has {big} pages and {a} has read {y}. How many hours are left to read?",
    "A recipe for {k} people needs {x} grams of flour. How many grams are needed for {y} people?",
    "{a} earns ${x} an hour and works {k} hours on each of 5 days. {a} spends ${y} on food. How much is left?",
    "A shop lowers the price of a ${big} coat by {k} percent and then takes off another ${y}. What is the new price?",
    "{a} and {b} share {big} {t} so that {a} gets {x} more than {b}. How many does {b} get?",
    "A tank with {big} liters loses {k} liters an hour. After {y} hours, {x} liters are added. How much is in it?",
    "Half of the {big} pupils of a school walk, {x} come by bus and the rest cycle. How many cycle?",
    "{a} baked {k} trays of {y} muffins and sold all but {x}. Each was sold for $2. How much money did {a} take?",
)
_MATH_TEMPLATES = ("{problem}", "{problem} Think step by step.", "Solve this problem and explain each step: {problem}")


def math_prompts(count: int, randomness: random.Random) -> list[str]:
    """Grade-school word problems, combined from parts."""
    prompts = []
    for _ in range(count):
        first, second = randomness.sample(_NAMES, 2)
        problem = randomness.choice(_PROBLEMS).format(
            a=first,
            b=second,
            t=randomness.choice(_THINGS),
            x=randomness.randint(5, 60),
            y=randomness.randint(2, 25),
            k=randomness.randint(2, 9),
            big=randomness.randrange(100, 500, 10),
        )
        prompts.append(randomness.choice(_MATH_TEMPLATES).format(problem=problem))
    return prompts


_HEROES = (
    "a lighthouse keeper|a retired thief|twins who never speak|a robot gardener|a night-shift nurse|an exiled queen|"
    "a boy who collects echoes|a mapmaker|the last librarian|a ghost who is afraid of people|a taxi driver|"
    "a failed magician|an astronaut|a dragon's accountant|a beekeeper|a time traveller's mother|a village baker|"
    "a detective with no memory|a street musician|a deaf pianist"
).split("|")
_EVENTS = (
    "finds a door that was not there yesterday|receives a letter written by their future self|must keep a promise to an"
    " enemy|loses the one thing that cannot be replaced|discovers that the town is built on a lie|has one day left|"
    "hears a voice on the radio that knows their name|wakes up in someone else's life|is asked to bury a secret|"
    "falls in love with a stranger's diary|learns that the moon is shrinking|has to choose between two truths|"
    "inherits a house full of clocks|makes a bargain at midnight|meets the person they once betrayed|"
    "is the only one who remembers the war|grows a garden that grants wishes|is mistaken for a hero"
).split("|")
_STORY_TEMPLATES = (
    "Write a short story about {hero} who {event}.",
    "[WP] {Hero} {event}.",
    "Write the opening scene of a novel in which {hero} {event}.",
    "Tell a {tone} tale: {hero} {event}.",
    "You are {hero}. One evening something changes: a person close to you {event}. Write about it.",
)
_TONES = "funny sad eerie hopeful romantic bitter whimsical tense".split()


def story_prompts(count: int, randomness: random.Random) -> list[str]:
    """Story ideas, combined from parts."""
    prompts = []
    for _ in range(count):
        hero, event = randomness.choice(_HEROES), randomness.choice(_EVENTS)
        template, tone = randomness.choice(_STORY_TEMPLATES), randomness.choice(_TONES)
        prompts.append(template.format(hero=hero, Hero=hero[0].upper() + hero[1:], event=event, tone=tone))
    return sorted(set(prompts))


def mixed_prompts(
    sharegpt: Path, without_benchmarks: Callable[[Sequence[str]], list[str]], settings: PromptMixSettings
) -> list[str]:
    """The mix on which the bundled heads were trained: chat, code, word problems and stories, shuffled.

    Code comes from the standard library and the installed numerical packages. ``without_benchmarks`` filters prompts
    and returns those that contain no benchmark prompt.
    """
    randomness = random.Random(settings.seed)
    chat = [turn for turn in without_benchmarks(sorted(set(chat_prompts(sharegpt)))) if _mostly_ascii(turn)]
    code = without_benchmarks(sorted(set(code_prompts(_installed_sources(), randomness))))
    math = without_benchmarks(sorted(set(math_prompts(settings.math, randomness))))
    stories = without_benchmarks(story_prompts(settings.stories, randomness))
    randomness.shuffle(chat)
    randomness.shuffle(code)
    mixed = chat[: settings.chat] + code[: settings.code] + math + stories
    randomness.shuffle(mixed)
    return mixed


def _mostly_ascii(text: str) -> bool:
    """Whether a text is mostly ASCII. The bundled model hardly knows other scripts, so its answers teach nothing."""
    return sum(character.isascii() for character in text) > 0.98 * len(text)


def _installed_sources() -> Iterator[Path]:
    paths = sysconfig.get_paths()
    standard, installed = Path(paths["stdlib"]), Path(paths["purelib"])
    yield from (path for path in sorted(standard.rglob("*.py")) if "site-packages" not in path.parts)
    for package in _CODE_PACKAGES:
        yield from sorted((installed / package).rglob("*.py"))
