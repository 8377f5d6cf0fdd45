"""Agents' frameworks with tools, each in an environment of its own: they call, get the result and go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.http_api import SECRET

pytestmark = pytest.mark.slow

OPENAI_AGENTS = """
import asyncio
import os
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from agents import set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)

@function_tool
def weather(city: str) -> str:
    "The weather in a city."
    return f"rain in {city}"

async def main():
    client = AsyncOpenAI(base_url=os.environ["URL"] + "/v1", api_key=os.environ["KEY"], max_retries=0)
    for model in (OpenAIResponsesModel("m", client), OpenAIChatCompletionsModel("m", client)):
        agent = Agent("forecaster", instructions="Be short.", tools=[weather], model=model,
                      model_settings=ModelSettings(temperature=0))
        print((await Runner.run(agent, "call once")).final_output)
        streamed = Runner.run_streamed(agent, "think and call")
        async for _ in streamed.stream_events():
            pass
        print(streamed.final_output)

asyncio.run(main())
"""

PYDANTIC_AI = """
import os
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

url, key = os.environ["URL"], os.environ["KEY"]
openai = OpenAIProvider(base_url=url + "/v1", api_key=key)
for model in (OpenAIResponsesModel("m", provider=openai), OpenAIChatModel("m", provider=openai),
              AnthropicModel("m", provider=AnthropicProvider(base_url=url, api_key=key))):
    agent = Agent(model, instructions="Be short.")

    @agent.tool_plain
    def weather(city: str) -> str:
        "The weather in a city."
        return f"rain in {city}"

    print(agent.run_sync("call once").output)
"""


@pytest.mark.parametrize(
    ("packages", "script", "lines"),
    [
        (["openai-agents"], OPENAI_AGENTS, 4),
        (["pydantic-ai-slim[openai,anthropic]"], PYDANTIC_AI, 3),
    ],
    ids=["openai-agents", "pydantic-ai"],
)
def test_agents_use_tools(packages: list[str], script: str, lines: int, scripted_url: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = str(tmp_path / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    environment = {**os.environ, "URL": scripted_url, "KEY": SECRET, "PYTHONPATH": ""}
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["It rains."] * lines), done.stderr[-3000:]
