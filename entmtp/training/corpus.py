"""Corpus: texts that the model writes itself, as token ids, for training and calibration of any heads.

Draft heads learn to guess the *model's* continuations, so the corpus is the model's own answer to each prompt
(self-distillation, Medusa section 2.3.3). The engine writes the answers, all slots together. A corpus is a folder of
parts, each a safetensors file. An interrupted run continues after its last part. What heads read of the texts is
computed for them later (:mod:`entmtp.training.states`), so one corpus serves all kinds of heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.models.backbone import Backbone
from entmtp.policies.static import StaticPolicy
from entmtp.settings import CorpusSettings, EngineSettings, SamplingParams
from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class Text:
    """A prompt and the model's answer to it, both as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """The whole text."""
        return [*self.prompt, *self.answer]

    @property
    def prompt_id(self) -> str:
        """Stable id of the prompt."""
        return prompt_id(self.prompt)


def prompt_id(ids: Sequence[int]) -> str:
    """Stable id of a tokenised prompt: 16 hexadecimal digits of a hash."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def write_corpus(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    settings: CorpusSettings,
    progress: Callable[[int, int], None] = lambda answers, tokens: None,
) -> int:
    """Generates an answer to each of ``prompts`` (token ids) and writes the texts to ``folder``.

    Prompts that the folder's parts answer already are skipped. Returns the number of tokens written.

    Raises:
        EntMTPError: if no prompt is short enough for the settings and the model's context, or the model fails.
    """
    longest = min(settings.max_prompt_tokens, backbone.max_context - settings.max_new_tokens)
    fitting = [list(ids) for ids in prompts if 0 < len(ids) <= longest]
    if not fitting:
        raise EntMTPError(
            f"prompts: none of {len(prompts)} has between 1 and {longest} tokens, which is what max_prompt_tokens and"
            " the model's context leave; give shorter prompts, raise max_prompt_tokens or lower max_new_tokens"
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = {text.prompt_id for text in read_corpus(folder)}
    unique = {prompt_id(ids): ids for ids in fitting}
    waiting = [ids for name, ids in unique.items() if name not in done]
    if not waiting:
        return 0
    pending: list[Text] = []
    count, tokens = len(done), 0
    for text in _answered(backbone, waiting, settings):
        pending.append(text)
        count, tokens = count + 1, tokens + len(text.answer)
        if sum(len(each.answer) for each in pending) >= settings.part_tokens:
            _write_part(folder, pending)
            pending = []
        progress(count, tokens)
    if pending:
        _write_part(folder, pending)
    return tokens


def _answered(backbone: Backbone, prompts: Sequence[list[int]], settings: CorpusSettings) -> Iterator[Text]:
    """Yields texts as their answers end; a free slot takes the next prompt at once."""
    engine = Engine(
        backbone,
        None,
        StaticPolicy(Topology.root_only(), entropy_window=1),
        EngineSettings(
            slots=min(settings.slots, len(prompts)),
            context=settings.max_prompt_tokens + settings.max_new_tokens,
            prefill_tokens=settings.prefill_tokens,
            prefix_reuse=False,
        ),
    )
    waiting, running = iter(prompts), dict[str, tuple[list[int], Completion]]()
    while True:
        while len(running) < settings.slots and (ids := next(waiting, None)) is not None:
            name = prompt_id(ids)
            running[name] = ids, engine.submit(Request(name, ids, _sampling(name, settings)))
        if not running:
            return
        for output in engine.step():
            if output.finish_reason is None:
                continue
            ids, completion = running.pop(output.id)
            if completion.error:
                raise EntMTPError(f"text: {completion.error}")
            yield Text(ids, completion.tokens)


def _sampling(name: str, settings: CorpusSettings) -> SamplingParams:
    """Sampling of an answer, by its prompt alone, so that an interrupted run continues with the same texts."""
    draw = hashlib.sha256(f"{settings.seed} {name}".encode()).digest()
    is_sampled = int(name[:8], 16) / 0xFFFFFFFF < settings.sampled_share
    return SamplingParams(
        max_tokens=settings.max_new_tokens,
        temperature=settings.temperature if is_sampled else 0.0,
        seed=int.from_bytes(draw[:8]),
    )


def part_paths(folder: Path) -> list[Path]:
    """Paths of a corpus's finished parts, in order."""
    return sorted(folder.glob("part-[0-9][0-9][0-9][0-9][0-9].safetensors"))


def _write_part(folder: Path, texts: Sequence[Text]) -> None:
    # The last number plus one, not the count: if a part was removed, the count is the number of an existing part.
    number = max((int(path.stem.removeprefix("part-")) for path in part_paths(folder)), default=-1) + 1
    tensors = {
        "tokens": torch.tensor([token for text in texts for token in text.tokens], dtype=torch.int32),
        "starts": torch.tensor([0, *(len(text.tokens) for text in texts)]).cumsum(0),
        "prompt_lengths": torch.tensor([len(text.prompt) for text in texts]),
    }
    write_whole(folder / f"part-{number:05d}.safetensors", lambda unfinished: save_file(tensors, unfinished))


def read_corpus(folder: Path) -> Iterator[Text]:
    """Yields all texts of a corpus, part by part. Raises EntMTPError as :func:`read_part`."""
    for path in part_paths(folder):
        yield from read_part(path)


def read_part(path: Path) -> list[Text]:
    """Reads the texts of one part.

    Raises:
        EntMTPError: if the file is not a corpus part.
    """
    try:
        part = load_file(path)
        tokens, starts, prompt_lengths = (part[name].tolist() for name in ("tokens", "starts", "prompt_lengths"))
        ranges = zip(pairwise(starts), prompt_lengths, strict=True)
        return [Text(tokens[begin : begin + prompt], tokens[begin + prompt : end]) for (begin, end), prompt in ranges]
    except Exception as error:  # safetensors raises its own type, and a foreign file lacks any of the keys
        raise EntMTPError(
            f"corpus: {path} is not a corpus part ({error}); remove it, and its texts are written again"
        ) from error
