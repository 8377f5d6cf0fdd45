"""Stream a chat answer from a running service (`make serve`) with OpenAI's own client.

python examples/chat_client.py [BASE_URL]
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Tell me a joke."}]
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, max_tokens=48):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
