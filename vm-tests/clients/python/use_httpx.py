"""Python httpx, over HTTP/1.1 or HTTP/2."""
import sys

import httpx

client = httpx.Client(
    base_url="https://api.clients.example",
    http2=sys.argv[1] == "2",
    headers={"Authorization": "Bearer placeholder"},
    timeout=60,
)

match sys.argv[2]:
    case "read":
        answer = client.get("/v1/things/42")
        assert answer.http_version == ("HTTP/2" if sys.argv[1] == "2" else "HTTP/1.1"), answer.http_version
        print(answer.json())
    case "write":
        answer = client.post("/v1/orders", json={"note": "juniper"})
        print(answer.status_code, answer.text)
    case "stream":
        with client.stream("GET", "/v1/events") as answer:
            for line in answer.iter_lines():
                print(line, flush=True)
