"""``entmtp train``: trains draft heads on the model's own answers to a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.heads.training_prompts import FILE_NAME, write_training_prompt_hashes
from entmtp.json_lines import check_file, read_json_lines
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.prompt_hash import prompt_hash
from entmtp.settings import CorpusSettings, TrainingSettings
from entmtp.training.corpus import prompt_id, write_corpus
from entmtp.training.dataset import Dataset
from entmtp.training.kinds import find_trainer
from entmtp.training.model_card import write_model_card
from entmtp.training.states import write_states
from entmtp.training.trainer import Progress

Log = Callable[[int, dict[str, float]], None]
CORPUS, CHECKPOINTS = "corpus", "checkpoints"
"""Folders of the texts and of the checkpoints, next to those of the heads."""


def prepare_training(
    *, kinds: Sequence[str], prompts: Path, output: Path, model: str, device: str, console: Console
) -> None:
    """Writes to ``output`` what heads of all ``kinds`` are trained from, so that :func:`train_heads` finds it there.

    Raises:
        EntMTPError: for unusable prompts, an unknown kind, or a model that is unsuitable for one.
    """
    trainers = [find_trainer(kind) for kind in kinds]
    texts = read_prompts(prompts)
    backbone, ids = _load(model, texts, device)
    layers = {trainer.feature_layers(backbone) for trainer in trainers}
    _write_text(backbone, ids, output, sorted(layers), console)


def train_heads(
    *,
    prompts: Path,
    output: Path,
    model: str,
    overrides: Mapping[str, Any],
    tracked: Callable[[Mapping[str, Any]], AbstractContextManager[Log]],
    device: str,
    console: Console,
) -> Path:
    """Writes heads to a folder in ``output`` with the name of their kind; returns it.

    The text that the model writes for them is stored in ``output/corpus``, for other kinds and later runs, next to its
    states under the model (:mod:`entmtp.training.states`) and the checkpoints.

    ``tracked`` is given the settings and opens a log of loss and accuracies.

    Raises:
        EntMTPError: for unusable prompts, settings or checkpoints, or a model that is unsuitable for the kind.
    """
    settings = TrainingSettings.parse(**{name: value for name, value in overrides.items() if value is not None})
    kind_of_trainer = find_trainer(settings.kind)
    texts = read_prompts(prompts)
    backbone, ids = _load(model, texts, device)
    (states,) = _write_text(backbone, ids, output, [kind_of_trainer.feature_layers(backbone)], console)
    dataset = Dataset(output / CORPUS, states, settings.held_out_share)
    trainer = kind_of_trainer(backbone, dataset, settings, output / CHECKPOINTS / f"{settings.kind}.pt")
    last: dict[str, float] = {}
    with tracked(settings.model_dump()) as log:

        def report(progress: Progress) -> None:
            metrics = {"loss": progress.loss} | (progress.accuracy.metrics() if progress.accuracy else {})
            last.update(metrics)
            log(progress.step, metrics)
            console.print(f"step {progress.step}/{progress.steps}, loss {progress.loss:.3f}", end=_end(console))
            if progress.accuracy:
                right = " ".join(f"{first:.1%}" for first, *_ in progress.accuracy.shares)
                console.print(f"held-out text, first guesses that are right by depth: {right}")

        heads = trainer.train(report)
    folder = output / settings.kind
    heads.half().save_pretrained(folder)
    write_model_card(folder, trainer, model, f"{len(texts)} of {prompts.name}", last)
    hashes = {prompt_id(tokens): prompt_hash(prompt) for tokens, prompt in zip(ids, texts, strict=True)}
    console.print(_write_prompt_hashes(folder, [each.text.prompt_id for each in dataset.texts], hashes))
    console.print(f"heads: {folder}")
    return folder


def _load(model: str, prompts: Sequence[str], device: str) -> tuple[Backbone, list[list[int]]]:
    """The model, and the prompts as its tokens."""
    loaded, tokenizer = load_model(model, device=device)
    return build_backbone(loaded), [encode_chat(tokenizer, prompt) for prompt in prompts]


def _write_text(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    output: Path,
    feature_layers: Sequence[Sequence[int]],
    console: Console,
) -> list[Path]:
    """Writes answers to the prompts, and the model's states with each of ``feature_layers``; returns their folders.

    What an earlier run has left is not written again.
    """

    def report_answers(answers: int, tokens: int) -> None:
        console.print(f"text: {answers}/{len(prompts)} prompts answered, {tokens} new tokens", end=_end(console))

    def report_states(parts: int, of: int) -> None:
        console.print(f"states: {parts}/{of} parts of the text read", end=_end(console))

    write_corpus(backbone, prompts, output / CORPUS, CorpusSettings(), report_answers)
    return [write_states(backbone, output / CORPUS, layers, report_states) for layers in feature_layers]


def _write_prompt_hashes(folder: Path, answered: Sequence[str], hashes: Mapping[str, str]) -> str:
    """Writes the hashes of the prompts that the corpus answers; returns a message for the user.

    A corpus may have answers from an earlier run with other prompts, whose texts are not known any more. An incomplete
    list would hide prompts that the heads have seen, so none is written then.
    """
    if unknown := set(answered) - hashes.keys():
        (folder / FILE_NAME).unlink(missing_ok=True)
        return f"no {FILE_NAME}: the corpus has {len(unknown)} answers to prompts that are not among those given"
    write_training_prompt_hashes(folder, (hashes[name] for name in answered))
    return f"{FILE_NAME}: {len(set(answered))} prompts, for benchmarks to look up"


def _end(console: Console) -> str:
    return "\r" if console.is_terminal else "\n"


def read_prompts(path: Path) -> list[str]:
    """Reads the ``prompt`` of every JSON line.

    Raises:
        EntMTPError: names the line that is not a JSON object with a text ``prompt``.
    """
    check_file(path, "prompts:", "a file of JSON lines")
    prompts = []
    for where, row in read_json_lines(path, "prompts:"):
        if not isinstance(row, dict) or "prompt" not in row:
            raise EntMTPError(f'prompts: {where} is not {{"prompt": "..."}}; mend the line')
        prompts.append(_checked(row["prompt"], where))
    if not prompts:
        raise EntMTPError(f"prompts: {path} holds none; give at least one JSON line")
    return prompts


def _checked(prompt: object, where: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise EntMTPError(f"prompts: {where}: prompt is empty or not text; mend the line")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        half = ascii(prompt[error.start])
        raise EntMTPError(f"prompts: {where}: prompt holds {half}, half of a character; mend the line") from error
    return prompt
