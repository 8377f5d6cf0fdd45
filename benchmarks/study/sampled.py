"""The study's section on texts sampled at the paper's temperature, lossless and by Medusa's lossy rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.study.claims import against_paper
from benchmarks.study.input import Study
from benchmarks.study.tables import quality_lines, speed_lines
from entmtp.evaluation.analysis.conclusions import quality_conclusions
from entmtp.methods import AUTOREGRESSIVE, ENTMTP
from entmtp.settings import PAPER_TEMPERATURE

TITLE = f"At temperature {PAPER_TEMPERATURE}"
_BASELINES = (AUTOREGRESSIVE, "hydra")


@dataclass(frozen=True)
class Sampled:
    """A run of a profile that samples its texts.

    Attributes:
        command: that makes its results.
        study: its report; None where it was not run.
    """

    title: str
    about: str
    command: str
    study: Study | None


def sampled_runs(lossless: Study | None, typical: Study | None) -> list[Sampled]:
    """Both runs, in the order of the page."""
    return [
        Sampled(
            "Lossless",
            "Every token is drawn from the model's own distribution. The prompt's seed gives each position of an answer"
            " one random number, and the token is where that number falls. So every lossless arm writes the very text"
            f" that {AUTOREGRESSIVE} draws, and only its time is its own. medusa-typical is Medusa's heads, tree and"
            " lossy rule in the same run.",
            _command("study-lossless"),
            lossless,
        ),
        Sampled(
            "Typical acceptance",
            "Medusa's rule, as the paper has it: every arm keeps a guess that is likely enough where the model is"
            f" unsure. Only {AUTOREGRESSIVE} draws from the model's own distribution. The arms write different texts,"
            " so speedups compare times per token. Each root is drawn here; in the paper's code it is the likeliest"
            " token.",
            _command("study-typical"),
            typical,
        ),
    ]


def sampled_lines(runs: Sequence[Sampled]) -> Iterator[str]:
    """The section, line by line."""
    yield from (f"## {TITLE}", "")
    yield from ("The paper measures at this temperature, with typical acceptance.", "")
    for run in runs:
        yield from (f"### {run.title}", "", run.about, "")
        if run.study is None:
            yield from ("Not run. This command does it, and `make study` does too:", "", "```", run.command, "```", "")
        else:
            yield from _found(run.study)


def _found(study: Study) -> Iterator[str]:
    summary = study.summary
    yield from (study.run, "")
    best = summary.best_adaptive or ENTMTP
    sentences = [*against_paper(summary, best), *quality_conclusions(summary), *study.caveats]
    yield from (*(f"- {sentence}" for sentence in sentences), "")
    yield from speed_lines(summary, _BASELINES)
    yield from quality_lines(summary)


def _command(profile: str) -> str:
    return f"python jobs/local.py jobs/benchmark.py --profile {profile} --results results/{profile}"
