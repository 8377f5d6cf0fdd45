"""The benchmark as a command: one set of options, whoever provides the devices (this process, or a Ray cluster)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console

if TYPE_CHECKING:
    from entmtp.evaluation.units import Unit


class Devices(Protocol):
    """Where units run.

    Attributes:
        device: 'cpu' or 'cuda'.
        threads: CPU threads of one worker.
    """

    device: str
    threads: int

    def run(self, plan: Any, waiting: list[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Yields each unit with its rows as it is done."""

    def hardware(self) -> str:
        """What the units ran on."""


def benchmark_command(open_devices: Callable[[], Devices]) -> Callable[..., None]:
    """The command's function for ``typer``."""

    def benchmark(
        profile: Annotated[str, typer.Option(help="quick, standard, study or full")] = "quick",
        suite: Annotated[list[str] | None, typer.Option(help="repeat for several (default: all)")] = None,
        arm: Annotated[list[str] | None, typer.Option(help="repeat for several (default: all)")] = None,
        model: Annotated[str, typer.Option(help="'bundled', a hub name or a local folder")] = "bundled",
        heads: Annotated[
            list[str] | None, typer.Option(help="medusa=FOLDER and hydra=FOLDER, or hub names, or native=native")
        ] = None,
        banks: Annotated[Path | None, typer.Option(help="folder with <suite>-<heads>.json tree banks")] = None,
        data: Annotated[list[str] | None, typer.Option(help="SUITE=FILE in the hub's schema; may repeat")] = None,
        prompts: Annotated[int | None, typer.Option(help="prompts per suite")] = None,
        max_new_tokens: Annotated[int | None, typer.Option(help="tokens per request")] = None,
        repetitions: Annotated[int | None, typer.Option(help="timed runs of each arm on each prompt")] = None,
        results: Annotated[Path, typer.Option(help="folder for parts, report and MLflow database")] = Path("results"),
        tracking_uri: Annotated[str | None, typer.Option(help="MLflow (default: a database in results)")] = None,
    ) -> None:
        """Compare autoregressive decoding, Medusa, Hydra and EntMTP."""
        from entmtp.cli_errors import told_plainly

        with told_plainly("benchmark"):
            from entmtp.evaluation.benchmark import finish, make_plan, run_units, validate

            overrides = {"prompts": prompts, "max_new_tokens": max_new_tokens, "repetitions": repetitions}
            validate(profile=profile, suites=suite or [], arms=arm or [], overrides=overrides)
            console = Console()
            devices = open_devices()
            plan = make_plan(
                profile=profile,
                suites=suite or [],
                arms=arm or [],
                model=model,
                heads=heads or [],
                banks=banks,
                data=data or [],
                overrides=overrides,
                results=results.absolute(),
                tracking_uri=tracking_uri,
                device=devices.device,
                threads=devices.threads,
            )
            console.print(
                f"{len(plan.units)} units, {len(plan.arms)} arms, profile {profile}; results in {plan.results}"
            )
            run_units(plan, lambda waiting: devices.run(plan, waiting), console)
            finish(plan, devices.hardware(), console)

    return benchmark
