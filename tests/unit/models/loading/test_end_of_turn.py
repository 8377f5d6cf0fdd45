"""End-of-turn tokens that the generation config lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from entmtp.llm import LLM
from entmtp.models.loading.end_of_turn import end_of_turn_ids, end_of_turn_notice, with_end_of_turn
from entmtp.settings import EngineSettings, SamplingParams
from tests.helpers.chained_models import save_chained
from tests.helpers.tokenizers import DECODERS, SPACE, ids, with_decoder

_TURNS = "{%% for m in messages %%}{{ m['content'] }}%s{%% endfor %%}{%% if add_generation_prompt %%}<s>{%% endif %%}"
CLOSED = _TURNS % "<|im_end|>"
OPEN = _TURNS % "\n"


def tokenizer(template: str | None, eos: str) -> PreTrainedTokenizerFast:
    backend = with_decoder(DECODERS["byte fallback, strip"])
    backend.add_special_tokens(["<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos, chat_template=template)


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (CLOSED, "<|im_end|>", ["<|im_end|>"]),
        (CLOSED, "</s>", ["</s>", "<|im_end|>"]),
        (OPEN, "</s>", ["</s>"]),
        (OPEN, "<|im_end|>", ["<|im_end|>"]),
        ("{{ raise_exception('no answers') }}", "</s>", ["</s>"]),
        ("{{ messages[0]['content'] + 1 }}", "</s>", ["</s>"]),
        ("", "</s>", ["</s>"]),
        (None, "<|im_end|>", []),
    ],
)
def test_a_turn_ends_with_the_tokenizers_end_and_the_templates(
    template: str | None, eos: str, expected: list[str]
) -> None:
    found = tokenizer(template, eos)
    assert found.convert_ids_to_tokens(end_of_turn_ids(found, len(found))) == expected


def test_a_token_that_the_model_lacks_ends_nothing() -> None:
    found = tokenizer(CLOSED, "</s>")
    assert end_of_turn_ids(found, len(found) - 1) == ids(found.backend_tokenizer, "</s>")


def test_parameters_keep_their_own_stop_tokens() -> None:
    assert with_end_of_turn(SamplingParams(stop_token_ids=[7, 2]), [2, 5]).stop_token_ids == [7, 2, 5]
    assert with_end_of_turn(SamplingParams(ignore_eos=True), [2]).stop_token_ids == []


def test_the_notice_names_the_tokens() -> None:
    found = tokenizer(CLOSED, "<|im_end|>")
    end, other = ids(found.backend_tokenizer, "<|im_end|>", "</s>")
    assert end_of_turn_notice(found, [end], frozenset([end, other])) is None
    assert end_of_turn_notice(found, [end], frozenset([other])) == (
        "<|im_end|> ends a chat answer too: the tokenizer's end of turn, which generation_config (</s>) lacks"
    )
    assert "(none)" in str(end_of_turn_notice(found, [end], frozenset()))


@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_a_chat_answer_ends_with_its_turn_and_a_completion_does_not(eos: str, tmp_path: Path) -> None:
    found = tokenizer(CLOSED, eos)
    backend = found.backend_tokenizer
    begin, paris, end, other = ids(backend, "<s>", f"{SPACE}Paris", "<|im_end|>", f"{SPACE}a")
    save_chained(tmp_path, backend, [begin, paris, end, other, other], template=CLOSED, eos=eos)
    notices: list[str] = []
    llm = LLM(str(tmp_path), policy="autoregressive", settings=EngineSettings(slots=1, context=128), say=notices.append)
    assert [line for line in notices if "ends a chat answer too" in line and "\n" not in line]
    params = SamplingParams(temperature=0, max_tokens=8)
    (chat,) = llm.generate("hi", params)
    assert (chat.tokens, chat.text, chat.finish_reason) == ([paris, end], "Paris", "stop")
    (completion,) = llm.generate([[begin]], params)
    assert completion.tokens == [paris, end, *[other] * 6]
    (ignoring,) = llm.generate("hi", params.model_copy(update={"ignore_eos": True}))
    assert ignoring.finish_reason == "length"
