"""The official OpenAI SDK."""
import sys

import openai

client = openai.OpenAI(api_key="placeholder")
asked = {"model": "gpt-5", "messages": [{"role": "user", "content": "juniper"}]}

match sys.argv[1]:
    case "read":
        print([model.id for model in client.models.list()])
    case "write":
        print(client.chat.completions.create(**asked).choices[0].message.content)
    case "stream":
        for chunk in client.chat.completions.create(**asked, stream=True):
            print(chunk.choices[0].delta.content or "", flush=True)
