"""The same words, sooner: one prompt and seed at several draft lengths, and what each pass gave."""

from engine import LLM, SamplingParams

PROMPT = "Once upon a time there was a"
params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True)

texts = set()
for num_draft_tokens in (0, 4, 8):
    output = LLM(speculation=num_draft_tokens).generate(PROMPT, params)[0]
    counts = output.metrics["speculative_decoding"]
    texts.add(output.outputs[0].text)
    print(
        f"{num_draft_tokens} drafts a pass: {counts['num_target_passes']:3} target passes, "
        f"{counts['tokens_per_target_pass']:.2f} tokens each"
    )

print("the same text every time" if len(texts) == 1 else "a rounding tie fell the other way")
print(PROMPT + (texts.pop() or ""))
