"""CrewAI: a crew of one with one tool; the model's answers are a script."""
import os
import sys

os.environ["OPENAI_API_KEY"] = "placeholder"

import requests
from crewai import Agent, Crew, Task
from crewai.tools import tool

HEADERS = {"Authorization": "Bearer placeholder"}


@tool("look_up")
def look_up() -> str:
    """Looks a thing up."""
    return requests.get("https://api.clients.example/v1/things/42", headers=HEADERS, timeout=60).text


@tool("place_order")
def place_order() -> str:
    """Places an order."""
    answer = requests.post("https://api.clients.example/v1/orders", json={"note": "juniper"}, headers=HEADERS, timeout=60)
    return f"{answer.status_code} {answer.text}"


agent = Agent(
    role="clerk",
    goal="do what is asked",
    backstory="a clerk",
    llm="gpt-4o",
    tools=[look_up if sys.argv[1] == "read" else place_order],
)
task = Task(description="Do it.", expected_output="what the tool said", agent=agent)
print(Crew(agents=[agent], tasks=[task]).kickoff().raw)
