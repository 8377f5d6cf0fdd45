"""The command of MLflow's image; MLflow's own takes seconds to import."""

import re

from tests.helpers.strict_files import last_instruction


def test_mlflow_is_started_with_options_that_it_knows() -> None:
    from mlflow.cli import cli

    mlflow, command, *options = re.findall(r'"([^"]+)"', last_instruction("mlflow", "CMD"))
    assert mlflow == "mlflow"
    known = {name for parameter in cli.commands[command].params for name in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known
    assert options[options.index("--port") + 1] == last_instruction("mlflow", "EXPOSE")
