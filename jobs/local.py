"""Run a job of this folder as on a cluster, on a local Ray cluster that is stopped with the job.

    python jobs/local.py jobs/benchmark.py --profile quick

starts a Ray head that listens on loopback only, submits the job with `ray job submit --working-dir .`, follows its log
and stops the head. The exit code is 0 only if the job succeeded. With RAY_API_SERVER_ADDRESS or RAY_ADDRESS set, the
job is submitted to that cluster instead and nothing is started.

The job runs in a copy of the working folder, so paths are made absolute: those of `--results` and `--output`, and every
`PATH/…` or `NAME=PATH` that exists. Without either option, `--results results` is added. A URI is not changed.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from entmtp.errors import EntMTPError
from entmtp.provenance import COMMIT_VARIABLE, checkout_commit
from entmtp.ray_head import handle_stop_signals, local_head, ray_command

STOP_SECONDS = 60
RESULT_OPTIONS = ("--results", "--output")
CLUSTER_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def main(arguments: list[str]) -> int:
    """Run the job of the command line `arguments`; returns 0 if it succeeded."""
    if not arguments or not Path(arguments[0]).is_file():
        print("usage: python jobs/local.py JOB.py [ARGUMENT …], from the folder that holds jobs/", file=sys.stderr)
        return 2
    job = ["python", arguments[0], *with_absolute_paths(arguments[1:])]
    handle_stop_signals()
    try:
        if any(os.environ.get(name) for name in CLUSTER_VARIABLES):
            return submit(job, dict(os.environ))
        with local_head(partial(print, flush=True)) as head:
            return submit(job, head.environment)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except EntMTPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def with_absolute_paths(arguments: list[str]) -> list[str]:
    """Make the paths among `arguments` absolute, for a job that runs in another folder."""
    made: list[str] = []
    for argument in arguments:
        name, equals, value = argument.rpartition("=")
        if "://" in value:
            made.append(argument)
            continue
        is_result = name in RESULT_OPTIONS or (made and made[-1] in RESULT_OPTIONS)
        is_path = (equals or "/" in value) and Path(value).expanduser().exists()
        made.append(f"{name}{equals}{Path(value).expanduser().absolute()}" if is_result or is_path else argument)
    if not any(argument.partition("=")[0] in RESULT_OPTIONS for argument in made):
        made += ["--results", str(Path("results").absolute())]
    return made


def submit(job: list[str], environment: dict[str, str]) -> int:
    """Submit `job` to the cluster of `environment` and follow its log until it ends."""
    name = f"entmtp-{Path(job[1]).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    arguments = ["job", "submit", "--working-dir", ".", "--submission-id", name]
    if commit := checkout_commit():
        arguments += ["--runtime-env-json", json.dumps({"env_vars": {COMMIT_VARIABLE: commit}})]
    arguments += ["--", *job]
    try:
        code = run_ray(arguments, environment)
        while code == 0 and (state := job_state(name, environment)) != "succeeded":
            if state is not None:
                return 1
            print("the connection to the job's log was lost; reading it again from its beginning", flush=True)
            code = run_ray(["job", "logs", "--follow", name], environment)
    except KeyboardInterrupt:
        print("stopping the job", flush=True)
        with suppress(subprocess.TimeoutExpired):
            stop = [*ray_command(), "job", "stop", name]
            subprocess.run(
                stop,
                env=environment,
                timeout=STOP_SECONDS,
                capture_output=True,
                start_new_session=True,
                check=False,
            )
        raise
    return code


def run_ray(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a command of Ray until it ends; returns its exit code. It is terminated if this process is interrupted."""
    print("+ ray " + shlex.join(arguments), flush=True)
    with subprocess.Popen([*ray_command(), *arguments], env=environment, stdin=subprocess.DEVNULL) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            running.terminate()
            raise


def job_state(name: str, environment: dict[str, str]) -> str | None:
    """The end of a job: 'succeeded', 'failed' or 'was stopped'; None while it runs.

    `ray job submit` ends with exit code 0 where a busy head closes the connection before the job's end.

    Raises:
        EntMTPError: the cluster does not answer.
    """
    command = [*ray_command(), "job", "status", name]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise EntMTPError(f"ray: the state of job '{name}' is unknown, as the cluster does not answer; see its logs")
    ended = re.search(f"Job '{re.escape(name)}' (succeeded|failed|was stopped)", answer.stdout + answer.stderr)
    return ended[1] if ended else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
