"""How large everything is that the GPU benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shapes and loads.

    Attributes:
        target: shape of the model that is measured.
        drafts: shapes of its drafts, the smallest first.
        other_small: another shape, measured at batch 1 and 64.
        other_large: a shape that needs `large_bytes` of device memory.
        large_bytes: see above.
        ceiling_bytes: of the buffer that is copied.
        ceiling_rows: rows, columns and depth of the large matrix product.
        hidden, intermediate, heads, kv_heads, head_dim, vocab, layers: the target's, for kernels.
        context: keys in front of the rows of a decode or verify pass.
        batches: requests of these passes.
        sampled_rows: rows that are sampled at once.
        linear_rows: rows of small matrix products.
        prompt, answer: tokens of a request under load, the answer's on average.
        decode_tokens: of one answer at batch 1.
        concurrency: requests in flight.
        synthetic_concurrency: the same, where drafts are accepted by dice.
        prompts: tokens of the long prompts.
        num_decodes: requests that decode while a long prompt is computed.
        peer_streams: requests of continuous batching.
        peer_tokens: of their answers.
        window_s: seconds that a window of steady load should take.
        windows: of each engine, in turn.
        repeats: of whatever is timed alone.
    """

    target: str = "llama-3.1-8b"
    drafts: tuple[str, str] = ("eagle3-llama-3.1-8b", "llama-3.2-1b")
    other_small: str = "qwen3-0.6b"
    other_large: str = "qwen3-30b-a3b"
    large_bytes: int = 100 * 10**9
    ceiling_bytes: int = 4 * 2**30
    ceiling_rows: int = 8192
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 128256
    layers: int = 32
    context: int = 8192
    batches: tuple[int, ...] = (1, 8, 64)
    sampled_rows: tuple[int, ...] = (1, 64, 256)
    linear_rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    prompt: int = 128
    answer: int = 128
    decode_tokens: int = 384
    concurrency: tuple[int, ...] = (1, 8, 64, 256, 512)
    synthetic_concurrency: tuple[int, ...] = (1, 8, 64)
    prompts: tuple[int, ...] = (2048, 8192)
    num_decodes: int = 32
    peer_streams: tuple[int, ...] = (64, 256)
    peer_tokens: int = 128
    window_s: float = 1.2
    windows: int = 3
    repeats: int = 30

    @property
    def longest(self) -> int:
        """Tokens of a request under load at most."""
        return self.prompt + self.answer * 3 // 2

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Output and input features of the products of one layer, and of the logits."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (width, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "lm_head": (self.vocab, self.hidden),
        }


REAL = Sizes()
TINY = Sizes(
    target="tiny",
    drafts=("tiny-draft", "tiny"),
    other_small="tiny",
    other_large="tiny",
    ceiling_bytes=2**16,
    ceiling_rows=64,
    hidden=64,
    intermediate=128,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=128,
    layers=2,
    context=32,
    batches=(1, 2),
    sampled_rows=(1, 3),
    linear_rows=(1, 2),
    prompt=8,
    answer=8,
    decode_tokens=24,
    concurrency=(1, 2),
    synthetic_concurrency=(1, 2),
    prompts=(16, 40),
    num_decodes=2,
    peer_streams=(2,),
    peer_tokens=4,
    window_s=0.02,
    windows=2,
    repeats=3,
)
"""Only for tests of the harness: numbers that it gives mean nothing."""
