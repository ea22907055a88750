"""Draws tokens from a model with Gumbel noise that another model can share.

Knows batched decoding over left-padded prompts, and noise that depends on (seed, step) alone.
Refuses to know why tokens are drawn. Coupled noise: Daliri et al. 2408.07978.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.training.tokenizer import PAD_ID


def gumbel(num_rows: int, vocab: int, seed: int, step: int) -> Tensor:
    """Give standard Gumbel noise [num_rows, vocab], float32 on the CPU; same arguments, same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    uniform = torch.rand(num_rows, vocab, generator=generator).clamp_(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def choose(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Pick a token per row of logits [..., vocab]: argmax at temperature 0, else Gumbel-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return (logits.float() / temperature + noise.to(logits.device)).argmax(-1)


def left_pad(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Give (tokens, attention mask, positions), all [num_rows, longest], padded on the left."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), PAD_ID)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    return tokens.to(device), mask.to(device), positions.to(device)


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    num_tokens: int,
    temperature: float,
    seed: int,
) -> Tensor:
    """Continue every prompt by `num_tokens` tokens, past any end token; [num_prompts, num_tokens].

    Row r of step s is drawn with row r of `gumbel(num_prompts, vocab, seed, s)`.
    """
    tokens, mask, positions = left_pad(prompts, model.device)
    cache = None
    drawn: list[Tensor] = []
    for step in range(num_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        noise = gumbel(len(prompts), model.config.vocab_size, seed, step)
        chosen = choose(output.logits[:, -1], temperature, noise)  # [num_prompts]
        drawn.append(chosen)
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return torch.stack(drawn, dim=1).cpu()


@torch.no_grad()
def continuation_logits(
    model: LlamaForCausalLM, prompts: list[list[int]], continuations: Tensor
) -> Tensor:
    """Give the logits that predict each continuation token: [num_prompts, num_tokens, vocab]."""
    rows = [[*p, *c] for p, c in zip(prompts, continuations.tolist(), strict=True)]
    tokens, mask, positions = left_pad(rows, model.device)
    logits: Tensor = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=continuations.shape[1] + 1,
    ).logits
    return logits[:, :-1].float()
