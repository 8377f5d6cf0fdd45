"""The benchmark's command line: one set of options for both executors (this process, or a Ray cluster)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from entmtp.settings import PROFILES

if TYPE_CHECKING:
    from entmtp.evaluation.run.executor import Executor
    from entmtp.evaluation.run.placement import ResourceRequest

SET_ASIDE = 3
"""Exit code of a benchmark that is finished except for prompts that failed in every try."""


def benchmark_command(make_executor: Callable[[ResourceRequest], Executor]) -> Callable[..., None]:
    """Make the command's function for ``typer``."""

    def benchmark(
        profile: Annotated[str, typer.Option(help=f"one of {', '.join(PROFILES)}")] = "quick",
        suite: Annotated[
            list[str] | None, typer.Option(help="repeat for several, see docs/suites.md (default: the paper's four)")
        ] = None,
        arm: Annotated[
            list[str] | None, typer.Option(help="repeat for several (default: those of the profile)")
        ] = None,
        model: Annotated[str, typer.Option(help="'bundled', a hub name, a local folder or a GGUF file")] = "bundled",
        heads: Annotated[
            list[str] | None,
            typer.Option(help="hydra=FOLDER or hub name, eagle3=…, dflash=…, medusa=… or native=native; may repeat"),
        ] = None,
        banks: Annotated[Path | None, typer.Option(help="folder with <suite>-<heads>.json tree banks")] = None,
        data: Annotated[list[str] | None, typer.Option(help="SUITE=FILE in the suite's schema; may repeat")] = None,
        prompts: Annotated[int | None, typer.Option(help="prompts per suite")] = None,
        max_new_tokens: Annotated[int | None, typer.Option(help="tokens per request")] = None,
        repetitions: Annotated[int | None, typer.Option(help="timed runs of each arm on each prompt")] = None,
        results: Annotated[
            str, typer.Option(help="folder or URI (file://, s3://, gs://) for parts, report and MLflow database")
        ] = "results",
        tracking_uri: Annotated[str | None, typer.Option(help="MLflow (default: a database in results)")] = None,
        device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
        dtype: Annotated[
            str, typer.Option(help="float32, bfloat16 or float16; in 16 bits arms may differ where tokens are close")
        ] = "float32",
        gpus_per_worker: Annotated[
            float | None,
            typer.Option(help="1, a fraction such as 0.5, or 2 for a model that one can't hold (default: 1 if any)"),
        ] = None,
        accelerator: Annotated[
            str | None, typer.Option(help="kind of GPU, as the cluster names it (default: the most frequent)")
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(help="at most so many; an autoscaling cluster is requested to add GPUs for them"),
        ] = None,
        cpus_per_worker: Annotated[
            int | None, typer.Option(help="of a worker without a GPU, where a service uses others (default: a node's)")
        ] = None,
        retry: Annotated[bool, typer.Option("--retry", help="try again prompts that were set aside")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and its length, run nothing")] = False,
        tokens_per_second: Annotated[
            float | None, typer.Option(help="of one worker, for the duration that --dry-run estimates")
        ] = None,
    ) -> None:
        """Compare autoregressive decoding, Medusa, Hydra, EAGLE-3 and EntMTP."""
        from entmtp.cli_errors import plain_errors

        with plain_errors("benchmark"):
            from entmtp.evaluation.report.mlflow import BENCHMARK_EXPERIMENT
            from entmtp.evaluation.results.storage import open_store
            from entmtp.evaluation.run.dry_run import show_plan
            from entmtp.evaluation.run.finish import finish
            from entmtp.evaluation.run.placement import ResourceRequest
            from entmtp.evaluation.run.planning import make_plan, validate
            from entmtp.evaluation.run.run import describe, run_units
            from entmtp.persistent_paths import check_persistent_path
            from entmtp.tracking.client import check_tracking

            overrides = {"prompts": prompts, "max_new_tokens": max_new_tokens, "repetitions": repetitions}
            validate(profile=profile, suites=suite or [], arms=arm or [], overrides=overrides)
            requested = ResourceRequest(device, gpus_per_worker, accelerator, workers, cpus_per_worker)
            requested.check()
            store = open_store(results)
            if store.local is not None and not dry_run:
                check_persistent_path(
                    "results", store.local, "--results an absolute path or a URI such as s3://BUCKET/FOLDER"
                )
            console = Console()
            # A dry run starts no nodes.
            executor = make_executor(replace(requested, workers=None) if dry_run else requested)
            plan = make_plan(
                profile=profile,
                suites=suite or [],
                arms=arm or [],
                model=model,
                heads=heads or [],
                banks=banks,
                data=data or [],
                overrides=overrides,
                results=store,
                tracking_uri=tracking_uri,
                device=executor.device,
                threads=executor.threads,
                dtype=dtype,
                retry=retry,
            )
            if dry_run:
                show_plan(plan, executor, workers or executor.workers, tokens_per_second, console)
                return
            check_tracking(plan.tracking_uri, BENCHMARK_EXPERIMENT)
            console.print(
                f"{len(plan.units)} units, {len(plan.arms)} arms, profile {profile}; results in {plan.results}"
            )
            for line in describe(plan):
                console.print(line)
            run_units(plan, lambda waiting: executor.run(plan, waiting), console, executor.worker_states)
            set_aside = finish(plan, console)
            if executor.usage.loaded_seconds:
                console.print(str(executor.usage), soft_wrap=True)
            if set_aside:
                sys.exit(SET_ASIDE)

    return benchmark
