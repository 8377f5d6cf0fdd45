"""Training corpus: text that the model generates itself, stored with its decoder states.

Draft heads learn to guess the *model's* continuations, so the corpus is the model's own answer to each prompt
(self-distillation, Medusa section 2.3.3). Generation computes the decoder states anyway; storing them saves a second
pass. A corpus is a folder of parts, each a safetensors file. An interrupted run continues after its last part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.settings import CorpusSettings


@dataclass
class Answer:
    """An answer in progress: ``tokens[i]`` was chosen from the decoder state ``states[i]``."""

    prompt_id: str
    sampled: bool
    tokens: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class CorpusPart:
    """Concatenated answers: ``tokens [total]``, ``states [total, hidden_size]``, ``starts [answers + 1]``."""

    tokens: torch.Tensor
    states: torch.Tensor
    starts: torch.Tensor
    prompt_ids: list[str]


def prompt_id(ids: Sequence[int]) -> str:
    """Stable id of a tokenised prompt: 16 hexadecimal digits of a hash."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


@torch.inference_mode()
def write_corpus(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    settings: CorpusSettings,
    progress: Callable[[int, int], None] = lambda answers, tokens: None,
) -> int:
    """Generates an answer to each of ``prompts`` (token ids) and writes them to ``folder``.

    Prompts that the folder's parts answer already are skipped. Returns the number of tokens written.

    Raises:
        EntMTPError: if no prompt is short enough for the settings and the model's context.
    """
    longest = min(settings.max_prompt_tokens, backbone.max_context - settings.max_new_tokens)
    fitting = [list(ids) for ids in prompts if 0 < len(ids) <= longest]
    if not fitting:
        raise EntMTPError(
            f"prompts: none of {len(prompts)} has between 1 and {longest} tokens, which is what max_prompt_tokens and"
            " the model's context leave; give shorter prompts, raise max_prompt_tokens or lower max_new_tokens"
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = {name for path in part_paths(folder) for name in read_part(path, states=False).prompt_ids}
    unique = {prompt_id(ids): ids for ids in fitting}
    waiting = iter([ids for name, ids in unique.items() if name not in done])
    pending: list[Answer] = []
    count, tokens = len(done), 0
    for answer in generate_answers(backbone, waiting, settings):
        pending.append(answer)
        count, tokens = count + 1, tokens + len(answer.tokens)
        if sum(len(each.tokens) for each in pending) >= settings.part_tokens:
            _write_part(folder, pending)
            pending = []
        progress(count, tokens)
    if pending:
        _write_part(folder, pending)
    return tokens


def generate_answers(backbone: Backbone, waiting: Iterator[list[int]], settings: CorpusSettings) -> Iterator[Answer]:
    """Yields answers as they finish; a free slot takes the next prompt at once (continuous batching)."""
    cache = backbone.new_cache(settings.slots, settings.max_prompt_tokens + settings.max_new_tokens + 1)
    randomness = torch.Generator().manual_seed(settings.seed)
    running: dict[int, Answer] = {}
    state = torch.zeros(settings.slots, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)
    while True:
        for slot in range(settings.slots):
            if slot not in running and (ids := next(waiting, None)) is not None:
                running[slot] = Answer(prompt_id(ids), _is_sampled(ids, settings))
                state[slot] = backbone.prefill(ids, slot, cache).hidden[-1]
        if not running:
            return
        slots = sorted(running)
        chosen = _choose(backbone.logits(state[slots]), [running[slot] for slot in slots], settings, randomness)
        yield from _append_tokens(backbone, cache, running, slots, state, chosen, settings)
        slots_left = [slot for slot in slots if slot in running]
        if slots_left:
            tokens = torch.tensor([running[slot].tokens[-1:] for slot in slots_left], device=backbone.device)
            state[slots_left] = backbone.extend(tokens, slots_left, cache)[:, 0]
            cache.append(slots_left, [1] * len(slots_left))


def _is_sampled(ids: Sequence[int], settings: CorpusSettings) -> bool:
    return int(prompt_id(ids)[:8], 16) / 0xFFFFFFFF < settings.sampled_share


def _choose(
    logits: torch.Tensor, answers: list[Answer], settings: CorpusSettings, randomness: torch.Generator
) -> list[int]:
    """Chooses the next token of each running answer: argmax, or a sample at the temperature."""
    chosen = logits.argmax(-1)
    sampled = torch.tensor([answer.sampled for answer in answers], device=logits.device)
    if sampled.any():
        probabilities = (logits[sampled].float() / settings.temperature).softmax(-1).cpu()
        chosen[sampled] = torch.multinomial(probabilities, 1, generator=randomness)[:, 0].to(chosen.device)
    return chosen.tolist()


def _append_tokens(
    backbone: Backbone,
    cache: TreeCache,
    running: dict[int, Answer],
    slots: list[int],
    state: torch.Tensor,
    chosen: list[int],
    settings: CorpusSettings,
) -> Iterator[Answer]:
    """Appends the chosen tokens to their answers and yields those that are finished."""
    states = state[slots].to("cpu", torch.bfloat16)
    for batch_row, (slot, token) in enumerate(zip(slots, chosen, strict=True)):
        answer = running[slot]
        answer.tokens.append(token)
        answer.states.append(states[batch_row])
        if token in backbone.eos_token_ids or len(answer.tokens) >= settings.max_new_tokens:
            cache.truncate(slot)
            yield running.pop(slot)


def part_paths(folder: Path) -> list[Path]:
    """Paths of a corpus's finished parts, in order."""
    return sorted(folder.glob("part-[0-9][0-9][0-9][0-9][0-9].safetensors"))


def _write_part(folder: Path, answers: list[Answer]) -> None:
    # The last number plus one, not the count: if a part was removed, the count is the number of an existing part.
    number = max((int(path.stem.removeprefix("part-")) for path in part_paths(folder)), default=-1) + 1
    path = folder / f"part-{number:05d}.safetensors"
    tensors = {
        "tokens": torch.tensor([token for answer in answers for token in answer.tokens], dtype=torch.int32),
        "states": torch.stack([state for answer in answers for state in answer.states]),
        "starts": torch.tensor([0, *(len(answer.tokens) for answer in answers)]).cumsum(0),
    }
    metadata = {"prompt_ids": json.dumps([answer.prompt_id for answer in answers])}
    write_whole(path, lambda unfinished: save_file(tensors, unfinished, metadata=metadata))


def read_part(path: Path, *, states: bool = True) -> CorpusPart:
    """Reads one part; ``states=False`` skips the (large) decoder states.

    Raises:
        EntMTPError: if the file is not a corpus part.
    """
    try:
        with safe_open(path, framework="pt") as file:
            hidden = file.get_tensor("states") if states else torch.empty(0)
            prompt_ids = json.loads(file.metadata()["prompt_ids"])
            return CorpusPart(file.get_tensor("tokens").long(), hidden, file.get_tensor("starts"), prompt_ids)
    except Exception as error:  # safetensors raises its own type, and a foreign file lacks any of the keys
        raise EntMTPError(f"corpus: {path} is not a corpus part ({error}); write the corpus again") from error
