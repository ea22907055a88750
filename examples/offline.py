"""Generate in this process, without a server: a chat and two plain prompts, batched."""

from engine import LLM, SamplingParams

llm = LLM()  # no model named: the demo pair; LLM("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B") loads others

answer = llm.chat(
    [{"role": "user", "content": "I am looking for an Italian restaurant in San Jose."}],
    SamplingParams(temperature=0.0, max_tokens=64),
)
print(answer.outputs[0].text)

params = SamplingParams(temperature=0.7, top_p=0.9, seed=7, max_tokens=48)
for output in llm.generate(["Once upon a time", "The little dog"], params):
    print(f"{output.prompt} ... {output.outputs[0].text}")
