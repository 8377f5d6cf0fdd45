"""Answer prompts in a batch, with seeded sampling."""

from entmtp import LLM, SamplingParams

llm = LLM(model="bundled")
prompts = ["Why is the sky blue?", "Write a haiku about rain."]
for prompt, answer in zip(prompts, llm.generate(prompts, SamplingParams(temperature=0.7, seed=1, max_tokens=48))):
    print(f"{prompt}\n{answer.text}\n({len(answer.tokens)} tokens, {answer.tau:.2f} per step)\n")
