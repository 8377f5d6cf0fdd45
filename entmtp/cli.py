"""The command line. Heavy libraries are imported inside the commands, so that help and user errors print at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from entmtp import methods
from entmtp.cli_errors import plain_errors, require_extra
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.command import benchmark_command
from entmtp.settings import DEFAULT_CONTEXT, DEFAULT_METHOD

if TYPE_CHECKING:
    from entmtp.evaluation.run.executor import Executor
    from entmtp.evaluation.run.placement import ResourceRequest

app = typer.Typer(
    help="Write faster with a large language model, token for token the same.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option(help="'bundled', a hub name, a local folder or a GGUF file")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or balanced: over all GPUs, for a model that one can't hold")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]


def main() -> None:
    """Entry point of the ``entmtp`` command."""
    app()


def _say(text: str) -> None:
    print(f"entmtp: {text}", file=sys.stderr, flush=True)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collect no garbage in the block, nor ever among what it makes: imported modules and weights stay to the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to answer")],
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(methods.offered())} (default: {DEFAULT_METHOD})"),
    ] = None,
    task: Annotated[
        str, typer.Option(help="whose tree bank to use: humaneval, gsm8k, sharegpt, litbench, mixed")
    ] = "sharegpt",
    model: Model = "bundled",
    heads: Annotated[
        str | None, typer.Option(help="heads for another model: a folder or hub name, or native: its own")
    ] = None,
    bank: Annotated[Path | None, typer.Option(help="tree bank for other heads")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens at most")] = 256,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="most tokens of prompt and answer together (default: as many as the model takes, on a GPU at most"
            f" {DEFAULT_CONTEXT})",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token; 1: as the model would draw")] = 0.0,
    top_p: Annotated[float, typer.Option(help="draw only from the likeliest tokens with this much together")] = 1.0,
    top_k: Annotated[int, typer.Option(help="draw only from so many of the likeliest tokens; 0: all")] = 0,
    seed: Annotated[int | None, typer.Option(help="the same seed draws the same text")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    kernels: Annotated[
        str, typer.Option(help="auto, triton, fused, fused-int16 or -int8 (lossy), packed, merged or eager")
    ] = "auto",
    weights: Annotated[str, typer.Option(help="own, or q8 or q4: rounded at load, on a CPU")] = "own",
) -> None:
    """Answer a prompt, streaming; then one line of statistics."""
    with plain_errors("generate"):
        with _no_garbage():
            from entmtp.loading import open_session
            from entmtp.method_spec import MethodSpec
            from entmtp.settings import SamplingParams, default_method

            if max_new_tokens < 1:
                raise EntMTPError(f"max_new_tokens: {max_new_tokens} is not accepted; ask for at least 1")
            params = SamplingParams.parse(
                max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
            )

            chosen = MethodSpec(
                name=method or default_method(device),
                task=task,
                model=model,
                heads=heads,
                bank=bank,
                device=device,
                dtype=dtype,
                kernels=kernels,
                weights=weights,
            )
            session = open_session(chosen, _say, context)
        for text in session.stream(prompt, params):
            print(text, end="", flush=True)
        print(f"\n\n{session.statistics()}", flush=True)


@app.command()
def calibrate(
    task: Annotated[str, typer.Option(help="humaneval, gsm8k, sharegpt or litbench; mixed: all")],
    output: Annotated[Path, typer.Option(help="folder for <task>-<heads>.json, traces and the calibration text")],
    model: Model = "bundled",
    heads: Annotated[
        list[str] | None,
        typer.Option(
            help="hydra=FOLDER, eagle3=…, dflash=…, medusa=… or native=native; may repeat (default: the bundled ones)"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="prompts in the hub's schema instead of the hub")] = None,
    prompts: Annotated[int | None, typer.Option(help="calibration prompts")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="tokens per prompt")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Make the tree bank of a task; continues where an interrupted run stopped."""
    with plain_errors("calibrate"):
        from entmtp.calibration.command import calibrate_task

        calibrate_task(
            task=task,
            output=output,
            model=model,
            heads=heads or [],
            data=data,
            overrides={"prompts": prompts, "max_new_tokens": max_new_tokens},
            device=device,
            dtype=dtype,
            console=Console(),
        )


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="a <task>-<heads>.trace.safetensors of entmtp calibrate")],
    bank: Annotated[Path, typer.Option(help="the tree bank that the policies choose from")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(methods.policies())}; may repeat (default: all that a trace is enough for)"),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="name or file of a hardware profile; flat: any step costs the same; gpu-like: only drafting costs"
        ),
    ] = "flat",
    batch: Annotated[int, typer.Option(min=1, help="requests in one step")] = 1,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens before a step; the profile's least if absent")
    ] = None,
) -> None:
    """Say what policies would gain on a trace, at a machine's cost of steps; needs neither model nor machine."""
    with plain_errors("replay"):
        from entmtp.calibration.replay import cost_of, replay_file, replay_table, replayable

        cost = cost_of(profile, batch, context)
        found = replay_file(trace, bank, policy or replayable(), cost, Console(stderr=True).print)
        Console().print(replay_table(found, profile))


@app.command()
def prompts(
    sharegpt: Annotated[Path, typer.Option(help="a ShareGPT file")],
    output: Annotated[Path, typer.Option(help="JSON lines to write, for 'entmtp train --prompts'")],
    data: Annotated[list[str] | None, typer.Option(help="SUITE=FILE that the benchmark will use; may repeat")] = None,
) -> None:
    """Make the mix of training prompts that the bundled heads were trained on, free of benchmark prompts."""
    with plain_errors("prompts"):
        from entmtp.training.prompts_command import write_training_prompts

        count = write_training_prompts(sharegpt, output, data or [])
        print(f"{count} prompts in {output}")


@app.command()
def train(
    prompts: Annotated[Path, typer.Option(help="JSON lines with a 'prompt' each")],
    output: Annotated[Path, typer.Option(help="folder for the text, the checkpoints and the heads")],
    kind: Annotated[str, typer.Option(help="medusa, hydra or eagle3")] = "hydra",
    model: Model = "bundled",
    epochs: Annotated[int | None, typer.Option(help="passes over the text")] = None,
    inner_size: Annotated[int | None, typer.Option(help="width of the heads' hidden layers")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow address; without it nothing is tracked")] = None,
    device: Device = "cpu",
) -> None:
    """Train draft heads on text that the model writes itself; continues where an interrupted run stopped."""
    with plain_errors("train"):
        from entmtp.tracking.client import check_tracking
        from entmtp.training.mlflow import TRAINING_EXPERIMENT, tracked_training
        from entmtp.training.train_heads import CHECKPOINTS, train_heads

        if tracking_uri is not None:
            check_tracking(tracking_uri, TRAINING_EXPERIMENT)
        train_heads(
            prompts=prompts,
            output=output,
            model=model,
            overrides={"kind": kind, "epochs": epochs, "inner_size": inner_size},
            tracked=partial(tracked_training, tracking_uri, output / CHECKPOINTS),
            device=device,
            console=Console(),
        )


@app.command("import-heads")
def import_published_heads(
    source: Annotated[str, typer.Argument(help="a published checkpoint: a hub name or a local folder")],
    output: Annotated[Path, typer.Option(help="folder for the converted heads")],
    model: Annotated[
        str | None, typer.Option(help="hub name or folder of the model that they are for; checks and binds them to it")
    ] = None,
) -> None:
    """Convert published heads to EntMTP's format: Medusa, Hydra, EAGLE-3, DFlash or DSpark, in any known layout."""
    with plain_errors("import-heads"):
        from entmtp.heads.importing.import_heads import import_heads

        import_heads(source, output, model, print)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="a Serve config file (default: the bundled model)")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="instead of the file's")] = None,
) -> None:
    """Serve models on this machine with an OpenAI-compatible API until Ctrl-C or SIGTERM."""
    with plain_errors("serve"):
        require_extra("serve", "ray", "fastapi", "fastapi_offline", "openai", "aiohttp", "grpc", "psutil", "yaml")
    from deployments.serve_local import CONFIG, main

    main(config or CONFIG, port)


def _local_executor(requested: ResourceRequest) -> Executor:
    from entmtp.evaluation.run.local_executor import LocalExecutor

    return LocalExecutor(requested)


app.command("benchmark")(benchmark_command(_local_executor))


if __name__ == "__main__":
    main()
