from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from entmtp.calibration.rank_trace import rank_trace
from entmtp.errors import EntMTPError
from entmtp.heads.stateless import StatelessText
from entmtp.models.backbone import Backbone
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from entmtp.trees.trace import MISS, load_traces, save_traces
from tests.helpers.small_cases import SMALL_VOCAB, small_backbone, small_heads, small_prompt, trace_of, traced


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
def test_a_rank_is_the_position_of_the_true_token_among_the_heads_top_tokens(kind: str, backbone: Backbone) -> None:
    heads = small_heads(kind, backbone)
    prompt, text = small_prompt(5), small_prompt(9, seed=1)
    trace = traced(backbone, heads, prompt, text)
    cache = backbone.new_cache(slots=1, capacity=64)
    states = backbone.prefill([*prompt, *text[:-1]], 0, cache).hidden[len(prompt) - 1 :]

    for start in range(len(text)):
        path: tuple[int, ...] = ()
        for depth in range(4):
            rank = int(trace.ranks[start, depth])
            if start + depth + 1 >= len(text):
                assert rank == MISS
                break
            # Under the true path so far, the heads' rank-th child must be the true next token.
            chain = [path[:length] for length in range(1, len(path) + 1)]
            tree = Topology.of([*chain, *((*path, sibling) for sibling in range(rank + 1))])
            proposal = heads.propose(states[start : start + 1], torch.tensor([text[start]]), TreeBatch.of([tree]))
            path += (rank,)
            assert int(proposal.tokens[0, tree.index[path]]) == text[start + depth + 1]


def test_a_token_that_the_heads_cannot_draft_is_a_miss(backbone: Backbone) -> None:
    heads = small_heads("hydra", backbone)
    unknown = int(heads.draft_vocab[0])
    heads.draft_vocab[0] = int(heads.draft_vocab[1])
    text = [int(token) for token in heads.draft_vocab[1:]]
    text.insert(4, unknown)
    tokens, states = torch.tensor(text), torch.zeros(len(text), backbone.hidden_size)
    trace = rank_trace(heads, tokens, StatelessText(heads, states, tokens), torch.zeros(len(text)))
    missed = {(start, depth) for start in range(len(text)) for depth in range(4) if trace.ranks[start, depth] == MISS}
    past_end = {(start, depth) for start in range(len(text)) for depth in range(4) if start + depth + 1 >= len(text)}
    assert missed == past_end | {(3 - depth, depth) for depth in range(4)}
    assert len(text) == SMALL_VOCAB


def test_a_long_text_traced_in_parts_has_the_same_ranks(backbone: Backbone) -> None:
    heads = small_heads("hydra", backbone)
    text = torch.tensor(small_prompt(200, seed=3))
    states = torch.randn(200, backbone.hidden_size)
    whole = rank_trace(heads, text, StatelessText(heads, states, text), torch.zeros(200)).ranks
    tail = rank_trace(heads, text[120:], StatelessText(heads, states[120:], text[120:]), torch.zeros(80)).ranks
    assert torch.equal(whole[120:], tail)


def test_saved_traces_are_read_back_unchanged(tmp_path: Path) -> None:
    traces = [trace_of([[0, 1], [2, MISS]], [0.1, 0.2]), trace_of([[3, 0]], [0.3])]
    save_traces(tmp_path / "t.safetensors", traces, {"task": "gsm8k"})
    back, provenance = load_traces(tmp_path / "t.safetensors")
    assert provenance == {"task": "gsm8k"}
    assert [len(trace) for trace in back] == [2, 1]
    for ours, theirs in zip(traces, back, strict=True):
        assert torch.equal(ours.ranks, theirs.ranks)
        assert torch.equal(ours.entropy, theirs.entropy)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_estimates_are_saved_with_the_traces_that_have_them(tmp_path: Path) -> None:
    plain = [trace_of([[0, 1], [2, MISS]]), trace_of([[3, 0]])]
    estimated = [replace(trace, estimated_odds=torch.rand(len(trace), 2)) for trace in plain]
    for name, traces in {"without": plain, "with": estimated, "one without": [estimated[0], plain[1]]}.items():
        save_traces(tmp_path / name, traces, {})
    assert [
        trace.estimated_odds for name in ("without", "one without") for trace in load_traces(tmp_path / name)[0]
    ] == [None] * 4
    for ours, theirs in zip(estimated, load_traces(tmp_path / "with")[0], strict=True):
        assert ours.estimated_odds is not None
        assert theirs.estimated_odds is not None
        assert torch.equal(ours.estimated_odds, theirs.estimated_odds)


def test_a_file_of_before_heads_could_estimate_is_read(tmp_path: Path) -> None:
    rows = {
        "ranks": torch.zeros(3, 2, dtype=torch.int32),
        "entropy": torch.zeros(3),
        "confidence": torch.zeros(3, 2, 4),
    }
    save_file(rows | {"lengths": torch.tensor([2, 1])}, tmp_path / "t", metadata={"provenance": "{}"})
    assert [(len(trace), trace.estimated_odds) for trace in load_traces(tmp_path / "t")[0]] == [(2, None), (1, None)]


def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(EntMTPError, match=r"t\.safetensors is not a rank trace"):
        load_traces(path)
    path.write_bytes(b"{}")
    with pytest.raises(EntMTPError, match="is not a rank trace"):
        load_traces(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(EntMTPError, match="is not a rank trace"):
        load_traces(path)
    rows = {
        "ranks": torch.zeros(3, 2, dtype=torch.int32),
        "entropy": torch.zeros(3),
        "confidence": torch.zeros(3, 2, 4),
    }
    save_file(rows | {"lengths": torch.tensor([2])}, path, metadata={"provenance": "{}"})
    with pytest.raises(EntMTPError, match="is not a rank trace"):
        load_traces(path)
    empty = {name: values[:0] for name, values in rows.items()} | {"lengths": torch.tensor([0])}
    save_file(empty, path, metadata={"provenance": "{}"})
    with pytest.raises(EntMTPError, match="is empty; make one from at least one prompt"):
        load_traces(path)
