"""Three answers to one prompt over one shared prefix, each with the odds of its first token."""

import math

from engine import LLM, SamplingParams

llm = LLM()
params = SamplingParams(n=3, temperature=1.0, min_p=0.05, seed=3, logprobs=2, max_tokens=24)
output = llm.generate("The princess opened the door and", params)[0]

for choice in output.outputs:
    assert choice.logprobs is not None
    chance = math.exp(choice.logprobs[0].logprob)
    print(f"[{choice.index}] first token had {chance:.1%}: {choice.text}")
