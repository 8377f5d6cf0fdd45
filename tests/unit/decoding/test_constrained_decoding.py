"""Constrained answers over trees: valid, and those of plain constrained decoding, whatever the tree and the company."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import jsonschema
import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entmtp.decoding.engine import Engine
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.decoding.state import DecodingState
from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.settings import EngineSettings
from entmtp.structured import Structured
from tests.helpers.constrained_texts import (
    POLICIES,
    PROMPT,
    engine_of,
    json_backbone,
    json_tokenizer,
    letter_tokenizer,
    params_of,
    schemas,
    written,
)
from tests.helpers.examples import examples
from tests.helpers.heads_with_caches import DRAFT_CACHE_KINDS, draft_cache_heads, draft_cache_model

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ab": {"enum": [True, 12, None]}},
    "required": ["name", "ab"],
    "additionalProperties": False,
}
ENGINES = {policy: engine_of(policy) for policy in POLICIES}
FORMS: dict[str, Structured] = {
    "json": Structured(json=PERSON),
    "regex": Structured(regex="[a-c]{2,5}(name|12)+x"),
    "choice": Structured(choice=["name", "nab", "na", "true story"]),
    "grammar": Structured(grammar='start: pair\npair: "a" pair "b" | "12" | /[x-z]{1,3}/'),
}


def check_form(name: str, text: str) -> None:
    if name == "json":
        jsonschema.validate(json.loads(text), PERSON)
    elif name == "regex":
        assert re.fullmatch("[a-c]{2,5}(name|12)+x", text)
    elif name == "choice":
        assert text in ("name", "nab", "na", "true story")
    else:
        inner = text.strip("ab")
        outer = (len(text) - len(inner)) // 2
        assert text == "a" * outer + inner + "b" * outer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", POLICIES)
def test_answers_have_their_form_and_are_those_of_plain_decoding(policy: str, form: str, temperature: float) -> None:
    params = params_of(FORMS[form], temperature=temperature, max_tokens=120)
    (plain,) = written(ENGINES["none"], params, max_nodes=0)
    (done,) = written(ENGINES[policy], params)
    assert plain.finish_reason == "stop" or (plain.finish_reason == "length" and form in ("regex", "grammar"))
    assert done.tokens == plain.tokens
    assert (done.text, done.finish_reason) == (plain.text, plain.finish_reason)
    if done.finish_reason == "stop":
        check_form(form, done.text)
    assert len(done.steps) <= len(plain.steps)


@given(schemas(), st.sampled_from(list(POLICIES)), st.sampled_from([0.0, 1.0]), st.integers(0, 2**32))
@settings(max_examples=examples(per_hundred=60))
def test_answers_by_drawn_schemas_are_valid_and_those_of_plain_decoding(
    schema: dict[str, Any], policy: str, temperature: float, seed: int
) -> None:
    params = params_of(Structured(json=schema), temperature=temperature, seed=seed)
    try:
        (plain,) = written(ENGINES["none"], params, max_nodes=0)
    except InvalidRequestError:
        return  # no value has this form, or it is too complex
    (done,) = written(ENGINES[policy], params)
    assert done.finish_reason == "stop", done.error
    jsonschema.validate(json.loads(done.text), schema, format_checker=jsonschema.FormatChecker())
    assert done.tokens == plain.tokens


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_free_requests_do_not_notice_constrained_ones(policy: str, temperature: float) -> None:
    free = [params_of(None, temperature=temperature, seed=at, max_tokens=40) for at in range(2)]
    alone = [written(ENGINES[policy], one)[0] for one in free]
    bound = [params_of(FORMS[name], temperature=temperature, seed=7) for name in ("json", "regex")]
    alone += [written(ENGINES[policy], one)[0] for one in bound]
    together = written(ENGINES[policy], *free, *bound)
    assert [done.tokens for done in together] == [done.tokens for done in alone]


@pytest.mark.parametrize("params", [{"presence_penalty": 1.0}, {"repetition_penalty": 1.4}, {"logit_bias": {64: 9.0}}])
def test_penalties_and_bias_shape_what_the_grammar_leaves(params: dict[str, Any]) -> None:
    shaped = params_of(FORMS["regex"], max_tokens=60, top_p=0.9, **params)
    (plain,) = written(ENGINES["none"], shaped, max_nodes=0)
    (done,) = written(ENGINES["static"], shaped)
    assert done.tokens == plain.tokens
    (unshaped,) = written(ENGINES["none"], params_of(FORMS["regex"], max_tokens=60, top_p=0.9), max_nodes=0)
    assert done.tokens != unshaped.tokens


@pytest.mark.parametrize("policy", ["none", "static", "dynamic", "eagle2"])
@pytest.mark.parametrize("kind", DRAFT_CACHE_KINDS)
def test_heads_with_draft_caches_follow_forced_chains(kind: str, policy: str) -> None:
    backbone = build_backbone(draft_cache_model(kind))
    engine = Engine(
        backbone,
        draft_cache_heads(kind, backbone),
        POLICIES[policy],
        EngineSettings(slots=2, context=120, prefix_reuse=False),
        letter_tokenizer('abc12x{}": ,'),
    )
    forms = [Structured(regex=r'[abc]{3}\{"ab": 12, "c": [12]\}(aab|1){2}'), Structured(choice=["aaaabbbbcccc", "aab"])]
    params = [params_of(form, max_tokens=60) for form in forms]
    plain = [written(engine, one, max_nodes=0, prompt=[1, 2])[0].tokens for one in params]
    together = written(engine, *params, prompt=[1, 2])
    assert [done.tokens for done in together] == plain
    assert max(step.topology.max_depth for step in together[0].steps) > 8


def test_a_forced_text_is_written_at_once_without_heads() -> None:
    forced = {"const": {"name": "Paris", "ab": [True, None]}}
    (done,) = written(ENGINES["none"], params_of(Structured(json=forced), temperature=1.0))
    assert json.loads(done.text) == forced["const"]
    assert len(done.steps) < len(done.tokens) / 8
    (plain,) = written(ENGINES["none"], params_of(Structured(json=forced), temperature=1.0), max_nodes=0)
    assert len(plain.steps) == len(plain.tokens)


def test_forced_guesses_are_never_wrong_and_forbidden_ones_never_verified() -> None:
    (done,) = written(ENGINES["static"], params_of(FORMS["json"], temperature=0.0))
    (free,) = written(ENGINES["static"], params_of(None, temperature=0.0, max_tokens=len(done.tokens)))
    assert done.drafted < free.drafted
    assert done.accepted > free.accepted


def test_a_node_limit_holds_for_the_grammar_too() -> None:
    (done,) = written(ENGINES["dynamic"], params_of(FORMS["json"]), max_nodes=3)
    assert max(step.topology.nodes for step in done.steps) == 3


def test_an_answer_that_is_cut_ends_by_its_length() -> None:
    params = params_of(FORMS["json"], temperature=0.0)
    (whole,) = written(ENGINES["dynamic"], params)
    (cut,) = written(ENGINES["dynamic"], params.model_copy(update={"max_tokens": 5}))
    assert (cut.finish_reason, cut.tokens) == ("length", whole.tokens[:5])
    (exact,) = written(ENGINES["dynamic"], params.model_copy(update={"max_tokens": len(whole.tokens)}))
    assert exact.finish_reason == "stop"


@pytest.mark.parametrize("policy", ["none", "static"])
def test_an_end_may_come_only_where_the_text_is_complete(policy: str) -> None:
    end = json_tokenizer().token_to_id("</s>")
    params = params_of(Structured(regex="(ab12)+"), stop_token_ids=[end], logit_bias={end: 100.0})
    (done,) = written(ENGINES[policy], params)
    assert (done.text, done.finish_reason, done.tokens[-1]) == ("ab12", "stop", end)
    (longer,) = written(ENGINES[policy], params.model_copy(update={"min_tokens": 10}))
    assert re.fullmatch("(ab12){2,}", longer.text)
    (endless,) = written(ENGINES[policy], params.model_copy(update={"stop_token_ids": [], "max_tokens": 30}))
    assert endless.finish_reason == "length"


def test_a_stop_string_ends_a_constrained_answer_too() -> None:
    (done,) = written(ENGINES["static"], params_of(Structured(json={"const": [1, 2, 3]}), stop=["2"]))
    assert (done.text, done.finish_reason) == ("[1, ", "stop")


def test_logprobs_are_the_models_own() -> None:
    params = params_of(FORMS["choice"], temperature=0.0, logprobs=1)
    (done,) = written(ENGINES["dynamic"], params)
    logits = json_backbone().model(torch.tensor([[*PROMPT, *done.tokens]])).logits[0].log_softmax(-1)
    own = [float(logits[len(PROMPT) - 1 + at, token]) for at, token in enumerate(done.tokens)]
    assert [one.chosen for one in done.logprobs] == pytest.approx(own, abs=1e-4)


def test_answers_to_one_seed_are_independent() -> None:
    engine = ENGINES["dynamic"]
    params = params_of(FORMS["json"])
    answers = [engine.submit(Request(f"{at}", PROMPT, params, answer_index=at)) for at in range(3)]
    while not engine.idle:
        engine.step()
    assert len({done.text for done in answers}) == 3


@pytest.mark.parametrize("method", ["forced", "apply_mask", "follow", "advance", "allows"])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_an_error_of_one_grammar_ends_its_request_alone(
    method: str, policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params = [params_of(FORMS["json"], temperature=0.0, seed=at, max_tokens=60) for at in range(2)]
    params += [params_of(None, temperature=0.0, max_tokens=60), params_of(FORMS["regex"], min_tokens=1, max_tokens=60)]
    expected = [done.tokens for done in written(ENGINES[policy], *params)]
    own = getattr(Constraint, method)
    calls: Counter[Constraint] = Counter()

    def broken(self: Constraint, *args: Any) -> Any:
        calls[self] += 1
        if self._min_tokens and calls[self] > 1:
            raise InvalidRequestError("structured: broken")
        return own(self, *args)

    monkeypatch.setattr(Constraint, method, broken)
    done = written(ENGINES[policy], *params)
    assert [one.tokens for one in done[:3]] == expected[:3]
    assert (done[3].finish_reason, done[3].error) == ("error", "structured: broken")
    assert "each takes its own" not in caplog.text  # no step had to be repeated


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_step_that_fails_leaves_constraints_as_they_were(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [params_of(FORMS[name], temperature=1.0, max_tokens=60) for name in ("json", "regex")]
    expected = [done.tokens for done in written(ENGINES["static"], *params)]
    engine = engine_of("static")
    commit, calls = DecodingState.commit, Counter[str]()

    def failing(*args: Any) -> Any:
        calls["commits"] += 1
        if calls["commits"] == 3:
            raise error
        return commit(*args)

    monkeypatch.setattr(DecodingState, "commit", failing)
    done = written(engine, *params)
    assert [one.tokens for one in done] == expected
    grown = [step.topology.nodes for step in done[0].steps[3:]]
    assert not any(grown) if error is MemoryError else any(grown)  # without memory, nothing is drafted for a while


def test_engines_without_a_tokenizer_refuse_constraints() -> None:
    engine = engine_of("none")
    engine.grammars = None
    with pytest.raises(InvalidRequestError, match="structured: this engine has no tokenizer; leave it out"):
        engine.submit(Request("a", PROMPT, params_of(FORMS["json"])))


def test_a_malformed_constraint_is_refused_as_it_is_submitted() -> None:
    with pytest.raises(EntMTPError, match="structured: this regex is not accepted"):
        written(ENGINES["none"], params_of(Structured(regex="(")))
    assert ENGINES["none"].idle


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_drawn_answers_come_as_often_as_plain_constrained_decoding_draws_them(policy: str) -> None:
    """Against the exact chances: the model's own, over the tokens that the expression leaves at each position."""
    structured = Structured(regex="(a|b|na|name|ab)(12|a|b|c)")
    draws = 600
    counts: Counter[tuple[int, ...]] = Counter()
    for first in range(0, draws, 4):
        params = [params_of(structured, seed=first + at, max_tokens=8) for at in range(4)]
        counts.update(tuple(done.tokens) for done in written(ENGINES[policy], *params))
    expected = _chances(structured)
    assert set(counts) <= set(expected)
    often = [text for text, chance in expected.items() if chance * draws >= 5]
    rest = draws - sum(counts[text] for text in often)
    wanted = [expected[text] * draws for text in often]
    seen = [*(counts[text] for text in often), rest]
    assert scipy.stats.chisquare(seen, [*wanted, draws - sum(wanted)]).pvalue > 1e-3


@torch.inference_mode()
def _chances(structured: Structured) -> dict[tuple[int, ...], float]:
    """Chance of each text, token by token, by the model alone."""
    grammars = ENGINES["none"].grammars
    assert grammars is not None
    grammar = grammars.compile(structured)
    chances: dict[tuple[int, ...], float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    while growing:
        text, chance = growing.popitem()
        constraint = Constraint(grammar, "regex", frozenset(), 0, begins_text=True)
        constraint.advance(text)
        if constraint.end is not None:
            chances[text] = chance
            continue
        logits = json_backbone().model(torch.tensor([[*PROMPT, *text]])).logits[0, -1]
        after: np.ndarray = constraint.apply_mask(logits).softmax(-1).double().numpy()
        growing |= {(*text, int(token)): chance * float(after[token]) for token in np.flatnonzero(after)}
    return chances
