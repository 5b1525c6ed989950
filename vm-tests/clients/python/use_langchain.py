"""LangChain: an agent with one tool; the model's answers are a script."""
import os
import sys

import requests
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

os.environ["OPENAI_API_KEY"] = "placeholder"
HEADERS = {"Authorization": "Bearer placeholder"}


def look_up() -> str:
    """Looks a thing up."""
    return requests.get("https://api.clients.example/v1/things/42", headers=HEADERS, timeout=60).text


def place_order() -> str:
    """Places an order."""
    answer = requests.post("https://api.clients.example/v1/orders", json={"note": "juniper"}, headers=HEADERS, timeout=60)
    return f"{answer.status_code} {answer.text}"


model = ChatOpenAI(model="gpt-4o")
if sys.argv[1] == "stream":
    for chunk in model.stream("Tell me."):
        print(chunk.content, flush=True)
else:
    agent = create_agent(model, [look_up if sys.argv[1] == "read" else place_order])
    print(agent.invoke({"messages": [{"role": "user", "content": "Do it."}]})["messages"][-1].content)
