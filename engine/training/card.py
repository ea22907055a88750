"""Writes the model card of the demo pair.

Knows the card's wording, the licences and attributions of the corpora. Refuses to measure:
every number is handed in.
"""

from dataclasses import dataclass

from engine.training.evaluate import Agreement, TextLoss
from engine.training.model import Shape

TEMPLATE = """\
# The demo pair

A small chat model and a smaller draft of it: the pair that `outdraft serve` starts when no model
is named. It exists to show speculative decoding on any machine. It holds short task dialogues
(restaurants, films, trains, hotels, events) and tells small stories; it knows nothing about the
world, invents names, numbers and addresses, and must not be relied upon.

| | target | draft |
|---|---|---|
| architecture | Llama, tied embeddings | Llama, tied embeddings |
| parameters | {target_parameters:,} | {draft_parameters:,} |
| layers x width | {target.num_layers} x {target.hidden} | {draft.num_layers} x {draft.hidden} |
| heads / KV heads / feed-forward | {target_heads} | {draft_heads} |
| training tokens | {target_tokens:,} | {draft_tokens} |

Both: float16 safetensors, 2,048 positions (trained on rows of 512 and, at the end, 1,024 tokens),
the same byte-level BPE tokenizer ({target.vocab:,} pieces, single digits) and ChatML-like template.
`<|im_end|>` ends a turn, `<|endoftext|>` ends a document.

## Training

```
python -m engine.training --data-dir <corpus> --output model_configs/demo [--max-minutes N]
```

prepares the text, trains the tokenizer, pretrains the target and the draft (Muon for hidden
matrices, AdamW for embeddings and norms, a trapezoid schedule), draws the target's own outputs at
temperatures 1, 0.7 and 0, and distils the draft on them and on real text. The loss of
distillation is {kl_weight} KL(target || draft) - log(1 - TV): 1 - TV is the share of tokens that
verification accepts. An interrupted run resumes from its work directory.

## Evaluation

On dialogues whose id `engine.held_out.is_held_out` keeps out of training (one in fifty):

| model | nats per token | nats per byte | tokens |
|---|---|---|---|
{losses}

Teacher-forced estimates on the target's own outputs for held-out dialogues, {num_drafts} draft
tokens per target pass, draft and target sharing their Gumbel noise:

| temperature | acceptance | optimum 1 - TV | tokens per target pass | tokens |
|---|---|---|---|---|
{agreements}

Acceptance is counted on contexts of accepted tokens; at temperature 0 the optimum is that of the
unscaled distributions. The numbers are in `evaluation.json`.

## Data and licences

| text | use | licence |
|---|---|---|
| Schema-Guided Dialogue (Rastogi et al. 2019, Google Research) | task dialogues | CC-BY-SA-4.0 |
| TinyStories sample (Eldan & Li 2023) | stories | CDLA-Sharing-1.0 |
| African Storybook, CC-BY stories only | stories | CC-BY |
| Self-dialogue Corpus (Fainberg et al., arXiv:1809.06641) | casual chat | BSD-3-Clause |

The dialogues and stories were re-formatted as chats, with synthesised story requests, greetings
and system prompts. The weights are published under CC-BY-SA-4.0, the most demanding of these
licences. The African Storybook texts are by {authors}.
"""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything the card states that is not fixed wording.

    Attributes:
        target: Shape of the target.
        draft: Shape of the draft.
        parameters: Parameter counts of (target, draft).
        tokens: Training tokens of (target, draft pretraining, distillation).
        losses: Name of a model and its loss on held-out dialogues.
        agreements: One per temperature.
        kl_weight: Weight of the KL term of distillation.
        authors: Authors to be named for attribution.
    """

    target: Shape
    draft: Shape
    parameters: tuple[int, int]
    tokens: tuple[int, int, int]
    losses: dict[str, TextLoss]
    agreements: list[Agreement]
    kl_weight: float
    authors: list[str]


def model_card(facts: CardFacts) -> str:
    """Render the card as Markdown."""
    losses = [
        f"| {name} | {loss.nats_per_token:.3f} | {loss.nats_per_byte:.4f} | {loss.num_tokens:,} |"
        for name, loss in facts.losses.items()
    ]
    agreements = [
        f"| {a.temperature:g} | {a.acceptance:.3f} | {a.optimum:.3f} | {a.tokens_per_pass:.2f} "
        f"| {a.num_tokens:,} |"
        for a in facts.agreements
    ]
    return TEMPLATE.format(
        target=facts.target,
        draft=facts.draft,
        target_heads=_heads(facts.target),
        draft_heads=_heads(facts.draft),
        target_parameters=facts.parameters[0],
        draft_parameters=facts.parameters[1],
        target_tokens=facts.tokens[0],
        draft_tokens=f"{facts.tokens[1]:,} + {facts.tokens[2]:,} of distillation",
        kl_weight=facts.kl_weight,
        num_drafts=facts.agreements[0].num_drafts if facts.agreements else 0,
        losses="\n".join(losses),
        agreements="\n".join(agreements),
        authors=", ".join(facts.authors),
    )


def _heads(shape: Shape) -> str:
    return f"{shape.num_heads} / {shape.num_kv_heads} / {shape.feed_forward}"
