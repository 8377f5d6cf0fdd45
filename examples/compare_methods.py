"""Compare plain decoding with EntMTP on one prompt: the same tokens, in fewer steps."""

from entmtp import LLM, SamplingParams

params = SamplingParams(temperature=0.0, max_tokens=48)
texts = {}
for method in ("autoregressive", "entmtp-dynamic"):
    (answer,) = LLM(model="bundled", policy=method).generate("Count from one to twenty in words.", params)
    texts[method] = answer.tokens
    print(f"{method}: {len(answer.tokens)} tokens in {len(answer.steps)} steps, {answer.tau:.2f} per step")
print("the same tokens" if len({tuple(tokens) for tokens in texts.values()}) == 1 else "other tokens")
