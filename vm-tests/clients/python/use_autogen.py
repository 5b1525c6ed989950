"""AutoGen: an assistant with one tool; the model's answers are a script."""
import asyncio
import sys

import requests
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent
from autogen_ext.models.openai import OpenAIChatCompletionClient

HEADERS = {"Authorization": "Bearer placeholder"}


async def look_up() -> str:
    """Looks a thing up."""
    return requests.get("https://api.clients.example/v1/things/42", headers=HEADERS, timeout=60).text


async def place_order() -> str:
    """Places an order."""
    answer = requests.post("https://api.clients.example/v1/orders", json={"note": "juniper"}, headers=HEADERS, timeout=60)
    return f"{answer.status_code} {answer.text}"


async def main(case):
    model = OpenAIChatCompletionClient(model="gpt-4o", api_key="placeholder")
    if case == "stream":
        assistant = AssistantAgent("assistant", model, model_client_stream=True)
        async for message in assistant.run_stream(task="Tell me."):
            if isinstance(message, ModelClientStreamingChunkEvent):
                print(message.content, flush=True)
        return
    tool = look_up if case == "read" else place_order
    assistant = AssistantAgent("assistant", model, tools=[tool], reflect_on_tool_use=True)
    result = await assistant.run(task="Do it.")
    print(result.messages[-1].content)


asyncio.run(main(sys.argv[1]))
