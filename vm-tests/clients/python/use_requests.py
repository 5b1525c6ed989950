"""Python requests."""
import sys

import requests

API = "https://api.clients.example"
session = requests.Session()
session.headers["Authorization"] = "Bearer placeholder"

match sys.argv[1]:
    case "read":
        print(session.get(API + "/v1/things/42", timeout=60).json())
    case "write":
        answer = session.post(API + "/v1/orders", json={"note": "juniper"}, timeout=60)
        print(answer.status_code, answer.text)
    case "stream":
        with session.get(API + "/v1/events", stream=True, timeout=60) as answer:
            for line in answer.iter_lines(chunk_size=1):
                print(line.decode(), flush=True)
