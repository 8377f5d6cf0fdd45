"""``LLM``: a model with its draft heads, for scripts.

    llm = LLM(model="bundled")
    for answer in llm.generate(["Why is the sky blue?"], SamplingParams(temperature=0.7, seed=1)):
        print(answer.text, answer.tau)

Everything that a script needs can be imported from here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from rich.progress import Progress

from entmtp.decoding.outputs import Completion, Score
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.loading import load_method
from entmtp.method_spec import MethodSpec
from entmtp.models.loading.end_of_turn import end_of_turn_ids, with_end_of_turn
from entmtp.models.loading.load import encode_chat
from entmtp.settings import EngineSettings, SamplingParams, default_method
from entmtp.structured import Structured

__all__ = ["LLM", "Completion", "EngineSettings", "SamplingParams", "Score", "Structured"]


def _say(text: str) -> None:
    print(f"entmtp: {text}", file=sys.stderr, flush=True)


class LLM:
    """Answers prompts in batches."""

    def __init__(
        self,
        model: str = "bundled",
        *,
        policy: str | None = None,
        heads: str | None = None,
        bank: str | Path | None = None,
        task: str = "sharegpt",
        device: str = "cpu",
        dtype: str = "float32",
        kernels: str = "auto",
        weights: str = "own",
        settings: EngineSettings | None = None,
        say: Callable[[str], None] = _say,
    ) -> None:
        """``model`` and ``heads`` are 'bundled', a hub name or a folder; ``model`` may be a GGUF file too.

        ``policy`` is a method's name, by default the device's (:func:`~entmtp.settings.default_method`). ``device`` is
        'cpu', 'cuda', or 'balanced' for a model spread over all GPUs. ``weights`` are the model's 'own', or 'q8' or
        'q4': rounded at load.

        Raises:
            EntMTPError: for an unknown name, or parts that do not belong together.
        """
        method = MethodSpec(
            name=policy or default_method(device),
            task=task,
            model=model,
            heads=heads,
            bank=None if bank is None else Path(bank),
            device=device,
            dtype=dtype,
            kernels=kernels,
            weights=weights,
        )
        self.engine, self.tokenizer = load_method(method, say, settings or EngineSettings())
        self._turn_ends = end_of_turn_ids(self.tokenizer, self.engine.backbone.vocab_size)

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        progress: bool = False,
    ) -> list[Completion]:
        """Answer each prompt ``n`` times: all answers to the first prompt, then those to the second, and so on.

        A text is put into the model's chat template. Token ids are used as they are, and so is a text if there is no
        template. Then the answer's text goes on from the prompt's: after "the capital is" comes " Paris", with its
        space. With one ``params`` for all, each prompt draws from a random stream of its own, even with a seed. With
        one for each, a prompt gets the texts that it would get in a call of its own.

        An answer that fails is returned with the tokens so far, ``finish_reason`` 'error' and the error message in
        ``error``; the other answers are complete.

        Raises:
            EntMTPError: if a prompt can't be served; the message names it. Nothing is generated then.
        """
        return self._run(self._requests(prompts, params, n), progress)

    def score(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        continuations: Sequence[str] | Sequence[Sequence[int]],
        *,
        progress: bool = False,
    ) -> list[Score]:
        """Score each continuation after its prompt: the model's log-probabilities of its tokens. Nothing is generated.

        Texts are read as they are, without the chat template. Of two texts the tokens of both together are scored that
        come after those of the prompt alone; spaces at the prompt's end count as the continuation's.

        Raises:
            EntMTPError: if a pair can't be scored; the message names its prompt. Nothing is scored then.
        """
        if len(prompts) != len(continuations):
            raise EntMTPError(
                f"continuations: {len(continuations)} are given for {len(prompts)} prompts; give one for each"
            )
        params = SamplingParams(max_tokens=0, prompt_logprobs=1)
        requests = [
            Request(f"{at}.0", tokens, params, prompt_index=at, scored_from=first)
            for at, (tokens, first) in enumerate(map(self._encode_pair, prompts, continuations))
        ]
        for request in requests:
            if request.scored_from < 1:
                raise EntMTPError(f"prompts[{request.prompt_index}]: it has no tokens; give some text")
        return [
            Score([one.chosen for one in done.prompt_logprobs], all(one.rank == 1 for one in done.prompt_logprobs))
            for done in self._run(requests, progress)
        ]

    def _run(self, requests: Sequence[Request], progress: bool) -> list[Completion]:
        """Run requests, as many at a time as there are slots; returns their completions in the same order."""
        for request in requests:
            self._check(request)
        waiting = iter(requests)
        done: list[Completion] = []
        ended = 0
        with Progress(disable=not progress) as bar:
            task = bar.add_task("answers", total=len(requests))
            try:
                while ended < len(requests):
                    free = self.engine.settings.slots - self.engine.running - self.engine.waiting
                    done += [self.engine.submit(request) for request in islice(waiting, max(0, free))]
                    finished = sum(step.finish_reason is not None for step in self.engine.step())
                    ended += finished
                    bar.advance(task, finished)
            finally:  # after an interruption no request may go on running
                for request in requests:
                    self.engine.cancel(request.id)
                self.engine.close()
        return done

    def _requests(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        n: int,
    ) -> list[Request]:
        requested: list[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        shared = not isinstance(params, Sequence)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(requested)
        if len(each) != len(requested):
            raise EntMTPError(f"params: {len(each)} are given for {len(requested)} prompts; give one, or one for each")
        return [
            Request(
                f"{at}.{number}",
                self._encode(at, prompt),
                with_end_of_turn(own, self._turn_ends) if isinstance(prompt, str) else own,
                number,
                prompt_index=at if shared else 0,
                continues_text=not isinstance(prompt, str) or self.tokenizer.chat_template is None,
            )
            for at, (prompt, own) in enumerate(zip(requested, each, strict=True))
            for number in range(n)
        ]

    def _encode_pair(self, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> tuple[list[int], int]:
        """Tokens of a prompt with its continuation, and the position of the continuation's first one."""
        if not isinstance(prompt, str) or not isinstance(continuation, str):
            return [*self._ids(prompt), *self._ids(continuation)], len(self._ids(prompt))
        text = prompt.rstrip()
        return self._ids(prompt + continuation), len(self._ids(text))

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        return list(self.tokenizer(text)["input_ids"] if isinstance(text, str) else text)

    def _encode(self, at: int, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if not prompt.strip():
            raise EntMTPError(f"prompts[{at}]: '{prompt}' is empty; give some text")
        return encode_chat(self.tokenizer, prompt)

    def _check(self, request: Request) -> None:
        try:
            self.engine.check(request)
        except EntMTPError as error:
            raise EntMTPError(f"prompts[{request.id.partition('.')[0]}]: {error}") from error
