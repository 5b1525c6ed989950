"""The official Anthropic SDK."""
import sys

import anthropic

client = anthropic.Anthropic(api_key="placeholder")
asked = {"model": "claude", "max_tokens": 100, "messages": [{"role": "user", "content": "juniper"}]}

match sys.argv[1]:
    case "read":
        print([model.id for model in client.models.list()])
    case "write":
        print(client.messages.create(**asked).content[0].text)
    case "stream":
        with client.messages.stream(**asked) as stream:
            for text in stream.text_stream:
                print(text, flush=True)
