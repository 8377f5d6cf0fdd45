"""Messages to users, word by word.

All other tests check what a message names: the field, the value, the status or the exit code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deployments.addresses import check_free
from deployments.http.auth import ApiKeys, load_keys, require_keys
from deployments.settings import AppArgs
from entmtp.cli_errors import plain_errors
from entmtp.decoding.request import Request, check_request
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import check_acceptance
from entmtp.evaluation.run.placement import Node, ResourceRequest, choose_placement
from entmtp.evaluation.run.planning import validate
from entmtp.loadtest.levels import parse_levels
from entmtp.methods import check_arms
from entmtp.models.kernels.choices import parse_kernels, supported_kernels
from entmtp.models.loading.load import checked_dtype
from entmtp.models.multi_gpu import check_all_on_gpus
from entmtp.policies.hardware_profile import load_profile
from entmtp.policies.ladder import Ladder
from entmtp.settings import SamplingParams
from entmtp.suites import draw, suite_names
from entmtp.trees.bank import load_bank
from entmtp.trees.topology import Topology
from tests.helpers.proxied_ingresses import Ingresses, body, part, send_through, start
from tests.helpers.small_cases import small_bank, small_cost, small_estimating_chances

CPUS = [Node("head", "head", 4.0, 0, "")]
GPUS = [Node("one", "one", 16.0, 1.0, "T4"), Node("eight", "eight", 64.0, 8.0, "H100")]
EVERY_ARM = (
    "autoregressive, medusa, medusa-best, hydra, hydra-best, native, native-best, eagle3, eagle3-best, dflash,"
    " dflash-best, entmtp, entmtp-goodput, entmtp-dynamic, entmtp-transfer, entmtp-mixed, always-big, random,"
    " bank-oracle, hindsight, medusa-typical"
)
FOLLOWS = (
    "follows the model's own text, which typical acceptance does not write; leave it out, or use a lossless profile"
)

PLACEMENTS: list[tuple[Sequence[Node], dict[str, Any], str]] = [
    (CPUS, {"workers": 0}, "workers: 0 is not accepted; give at least 1"),
    (CPUS, {"gpus_per_worker": 0}, "gpus_per_worker: 0 is not accepted; give 1, or a fraction such as 0.5"),
    (CPUS, {"gpus_per_worker": -1}, "gpus_per_worker: -1 is not accepted; give 1, or a fraction such as 0.5"),
    (
        CPUS,
        {"gpus_per_worker": float("nan")},
        "gpus_per_worker: nan is not accepted; give 1, or a fraction such as 0.5",
    ),
    (CPUS, {"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5 is not accepted; give a whole number, or less than 1"),
    (CPUS, {"cpus_per_worker": 0}, "cpus_per_worker: 0 is not accepted; give at least 1"),
    (CPUS, {"cpus_per_worker": 5}, "cpus_per_worker: 5 is more than any node has; give at most 4"),
    (CPUS, {"gpus_per_worker": 1}, "gpus_per_worker: 1 is more than any node has; leave it out to run on CPUs"),
    (GPUS, {"gpus_per_worker": 9}, "gpus_per_worker: 9 is more than any node has; leave it out to run on CPUs"),
    (CPUS, {"device": "tpu"}, "device: 'tpu' is unknown; choose one of auto, cpu, cuda"),
    (
        CPUS,
        {"device": "cuda"},
        "device: 'cuda' needs a GPU and no node has one; add a node with a GPU, or give --device cpu",
    ),
    (
        CPUS,
        {"accelerator": "H100"},
        "accelerator: 'H100' needs a GPU and no node has one; add a node with a GPU, or give --device cpu",
    ),
    (GPUS, {"accelerator": "B200"}, "accelerator: 'B200' is on no node; the cluster's GPUs are H100, T4"),
    (
        GPUS,
        {"cpus_per_worker": 2},
        "cpus_per_worker: 2 is for workers without a GPU; leave it out (jobs/benchmark.py takes it with --device cpu)",
    ),
    ([Node("head", "head", 0.0, 0, "")], {}, "cluster: no node offers a CPU; start one with 'ray start --num-cpus N'"),
]


@pytest.mark.parametrize(("nodes", "requested", "message"), PLACEMENTS)
def test_resources_that_no_node_can_give(nodes: Sequence[Node], requested: dict[str, Any], message: str) -> None:
    with pytest.raises(EntMTPError) as refusal:
        choose_placement(nodes, ResourceRequest(**requested))
    assert str(refusal.value) == message


@pytest.mark.parametrize("arm", ["eagle", "oracle"])
def test_an_arm_that_there_is_not(arm: str) -> None:
    with pytest.raises(EntMTPError) as refusal:
        check_arms(["medusa", arm])
    assert str(refusal.value) == f"arm: '{arm}' is unknown; choose from {EVERY_ARM}"


def test_arms_that_know_the_models_text_where_another_is_written() -> None:
    with pytest.raises(EntMTPError) as refusal:
        check_acceptance(["hydra", "bank-oracle"], "typical")
    assert str(refusal.value) == f"arm: 'bank-oracle' {FOLLOWS}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "paper", "arms": ["random"]}, f"arm: 'random' {FOLLOWS}"),
        (
            {"overrides": {"repetitions": 0}},
            "repetitions: 0 is not accepted: input should be greater than or equal to 1",
        ),
    ],
)
def test_options_that_are_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"profile": "full", "suites": [], "arms": [], "overrides": {}}
    with pytest.raises(EntMTPError) as refusal:
        validate(**(given | changes))
    assert str(refusal.value) == message


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MARKS: dict[str, Any] = {
    "model_fingerprint": "m" * 64,
    "heads_fingerprint": "h" * 64,
    "estimates_acceptance": False,
}
ROOT_ONLY = Topology.root_only()


def check_engine(**fields: Any) -> None:
    AppArgs.parse(engines=[{"name": "a", "model_name": "m"} | fields])


def check_params(prompt: list[int], **params: Any) -> None:
    """Check a request for at most 5 tokens against a model of 12 tokens with a context of 64."""
    request = Request("r", prompt, SamplingParams.parse(**({"max_tokens": 5} | params)))
    check_request(request, vocab_size=12, context=64, max_context=64)


REFUSALS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda _: parse_kernels("fast"),
        "kernels: 'fast' is unknown; choose one of auto, triton, fused, fused-int16, fused-int8, packed, merged, eager",
    ),
    (
        lambda _: supported_kernels("triton", torch.bfloat16, CPU),
        "kernels: 'triton' needs an NVIDIA GPU; the weights are torch.bfloat16 on cpu; use 'auto'",
    ),
    (
        lambda _: supported_kernels("packed", torch.float16, CPU),
        "kernels: 'packed' needs float32 or bfloat16 weights on a CPU, AVX-512 for bfloat16, and oneDNN in"
        " PyTorch; these are torch.float16 on cpu; use 'auto'",
    ),
    (
        lambda _: supported_kernels("fused", torch.bfloat16, CPU),
        "kernels: 'fused' needs float32 weights on a CPU; these are torch.bfloat16 on cpu; use 'auto'",
    ),
    (
        lambda _: supported_kernels("fused", torch.float32, CUDA),
        "kernels: 'fused' needs float32 weights on a CPU; these are torch.float32 on cuda; use 'auto'",
    ),
    (
        lambda _: check_all_on_gpus("org/large", SimpleNamespace(hf_device_map={"layers.0": 0, "layers.1": "cpu"})),
        "model 'org/large': 0 GPUs have no room for 1 of its parts, 'layers.1' among them; use more of them,"
        " or a smaller dtype",
    ),
    (lambda _: checked_dtype("int8"), "dtype 'int8': unknown; use float32, bfloat16 or float16"),
    (
        lambda folder: load_bank(folder / "none.json"),
        "bank: FOLDER/none.json does not exist; make one with 'entmtp calibrate'",
    ),
    (
        lambda _: small_bank().check_heads(kind="medusa", num_heads=4, **MARKS),
        "bank: its heads_kind is hydra, yours is medusa; use a bank made with these heads, or make one with"
        " 'entmtp calibrate --task gsm8k'",
    ),
    (
        lambda _: small_bank().check_heads(kind="hydra", num_heads=2, **MARKS),
        "topology: path (0, 0, 0) has depth 3 but there are only 2 draft heads; shorten the path or use deeper heads",
    ),
    (
        lambda _: small_estimating_chances().probabilities(0, [-0.1]),
        "bank: chances.sharpness.estimated_odds is set but these heads don't estimate their own acceptance; use a bank"
        " made with these heads, or make one with 'entmtp calibrate'",
    ),
    (lambda _: Ladder((0.5,), (ROOT_ONLY,), 8), "ladder: 1 thresholds need 2 rungs"),
    (lambda _: Ladder((0.5, 0.5), (ROOT_ONLY, ROOT_ONLY, ROOT_ONLY), 8), "ladder: thresholds (0.5, 0.5) must increase"),
    (
        lambda _: small_cost().of_batch(2, 160),
        "batch: the cost of a step is known for 1 request, not for 2; give a hardware profile that was"
        " measured with such batches",
    ),
    (
        lambda _: load_profile("abacus"),
        "profile: 'abacus' is neither a file nor a known profile (epyc-2-cores, h200-vicuna-7b, xeon-2-cores);"
        " give one of them",
    ),
    (
        lambda _: suite_names(["gsm8k-9-shot"]),
        "suite gsm8k-9-shot: there are 8 worked examples; ask for gsm8k-1-shot to gsm8k-8-shot, or gsm8k for none",
    ),
    (
        lambda _: suite_names(["sharegpt-17-turns"]),
        "suite sharegpt-17-turns: turns are 2 to 16; ask for sharegpt-2-turns to sharegpt-16-turns, or"
        " sharegpt for first messages",
    ),
    (lambda _: draw([], 0, seed=0), "count 0 is below 1; draw at least one prompt"),
    (
        lambda _: parse_levels("4097", None),
        "users: '4097' is not a number from 1 to 4096; give numbers such as 4 or 1,8,64",
    ),
    (
        lambda _: parse_levels(None, "nan"),
        "rate: 'nan' is not above 0 and at most 10000; give numbers such as 2 or 0.5,1,2",
    ),
    (lambda _: check_params([]), "prompt: it has no tokens; give some text"),
    (lambda _: check_params([1, 12]), "prompt: token 12 is not one of the model's 12; give others"),
    (
        lambda _: check_params([1], logit_bias={99: 1.0}),
        "logit_bias: token 99 is not one of the model's 12; give others",
    ),
    (
        lambda _: check_params([1], stop_token_ids=[99]),
        "stop_token_ids: token 99 is not one of the model's 12; give others",
    ),
    (
        lambda _: check_params([1], max_tokens=64),
        "prompt: 1 tokens and 64 new ones exceed the context of 64; shorten the prompt or ask for fewer tokens",
    ),
    (lambda _: check_params([1], max_tokens=3, min_tokens=4), "min_tokens: 4 is more than max_tokens 3; ask for fewer"),
    (
        lambda folder: load_keys(folder / "absent"),
        "api_keys_file: FOLDER/absent can't be read ([Errno 2] No such file or directory: 'FOLDER/absent');"
        " give a file of NAME:SHA256",
    ),
    (
        lambda _: require_keys("0.0.0.0", ApiKeys({}), allow_anonymous=False),
        "api_keys_file: the service has no API keys but listens on 0.0.0.0; make a key with 'python -m"
        " deployments.http.auth NAME', or set allow_anonymous",
    ),
    (
        lambda _: check_free("203.0.113.1", 8000),
        "host: 203.0.113.1 is no address of this machine; give one that is, or 127.0.0.1",
    ),
    (
        lambda _: AppArgs.parse(engines=[]),
        "engines: [] is not accepted: list should have at least 1 item after validation, not 0",
    ),
    (
        lambda _: check_engine(task="chess"),
        "engines.0.task: 'chess' is unknown; choose one of humaneval, gsm8k, sharegpt, litbench, mixed",
    ),
    (
        lambda _: check_engine(device="cuda"),
        "engines.0.num_gpus: 0 with device cuda; give each replica a GPU, or a share of one",
    ),
    (
        lambda _: check_engine(autoscaling={"min_replicas": 3, "max_replicas": 2}),
        "engines.0.autoscaling: max_replicas 2 is less than min_replicas 3",
    ),
    (
        lambda _: check_engine(engine={"slots": 0}),
        "engines.0.engine.slots: 0 is not accepted: input should be greater than or equal to 1",
    ),
    (
        lambda _: check_engine(name="a/b"),
        "engines.0.name: 'a/b' is not accepted: string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'",
    ),
]
"""Calls that are given a folder, with the messages of their errors."""


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_what_a_user_gives_is_refused(call: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError) as refusal:
        call(tmp_path)
    assert str(refusal.value).replace(str(tmp_path), "FOLDER") == message


def test_a_package_that_an_extra_installs_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), plain_errors("benchmark"):
        raise ModuleNotFoundError("No module named 'matplotlib.axes'", name="matplotlib.axes")
    told = "entmtp benchmark: matplotlib is not installed; pip install 'entmtp[benchmark]'\n"
    assert capsys.readouterr().err == told


def test_a_service_that_is_not_there() -> None:
    _, answer = send_through(Ingresses([start(404), part(b"Path not found")]), body(b"{}"))
    assert json.loads(answer["body"])["error"]["message"] == "service: it is starting or stopping; try again"
