"""What the engine counts of itself; named once here, rendered elsewhere. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.request import DraftCounts, SpeculationStats


@dataclass(slots=True)
class DrafterSeconds:
    """What one drafter's drafts took.

    Attributes:
        draft: making them.
        verify: their rows' share of the target's passes.
    """

    draft: float = 0.0
    verify: float = 0.0


@dataclass(slots=True)
class Distribution:
    """How often something had which size.

    Attributes:
        counts: of sizes up to 1, 2, 4, 8 and so on, each without those before; the last of any
            larger one.
        total: all sizes together.
    """

    counts: list[int]
    total: int = 0

    def observe(self, size: int) -> None:
        """Count one of at least 1."""
        self.counts[min((size - 1).bit_length(), len(self.counts) - 1)] += 1
        self.total += size


@dataclass(slots=True)
class EngineStats:
    """A snapshot of the engine; counters only ever grow.

    Attributes:
        num_running: requests that hold blocks.
        num_waiting: requests in the queue.
        num_background_running: of those that hold blocks, background work in the last step.
        num_background_paused: of those that hold blocks, background work that was not in it.
        num_background_waiting: of those in the queue, background work.
        kv_cache_usage: share of KV cache blocks in use, 0 to 1.
        num_steps: steps that ran the target.
        step_requests: how many requests each of them computed.
        step_tokens: and how many tokens, drafts included.
        num_prompt_tokens: prompt tokens of admitted requests.
        num_prefix_query_tokens: prompt tokens looked up in the prefix cache.
        num_prefix_hit_tokens: of those, found.
        num_preemptions: times a request lost its blocks.
        num_shed_steps: steps that did not fit into memory and were computed again in parts.
        controller_seconds: of the overhead, time spent on deciding who drafts how much; looking
            up drafts that were found is drafting.
        grammar_compile_seconds: time spent compiling grammars, in the background.
        grammar_mask_seconds: time spent on the masks of grammars, on all threads together.
        grammar_mask_wait_seconds: time that sampling waited for masks.
        speculation: counts over all requests, finished or not, and what steps took.
        drafter_seconds: what drafts took, by who made them. Prompts and catching up, and drafting
            that came to nothing, are nobody's drafts.
        drafter_failures: times that a drafter raised and was switched off, by who.
        estimated_speedup: tokens per second that the controller expected of the last step, over
            those without speculation; 1 where nothing is weighed.
        num_graphs: passes recorded as CUDA graphs.
        graph_bytes: device memory that the recordings hold.
        warnings: what turned out while serving and somebody should know.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_background_running: int = 0
    num_background_paused: int = 0
    num_background_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    step_requests: Distribution = field(default_factory=lambda: Distribution([0] * 12))
    step_tokens: Distribution = field(default_factory=lambda: Distribution([0] * 16))
    num_prompt_tokens: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0
    num_shed_steps: int = 0
    controller_seconds: float = 0.0
    grammar_compile_seconds: float = 0.0
    grammar_mask_seconds: float = 0.0
    grammar_mask_wait_seconds: float = 0.0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    drafter_seconds: dict[str, DrafterSeconds] = field(default_factory=dict)
    drafter_failures: dict[str, int] = field(default_factory=dict)
    estimated_speedup: float = 1.0
    num_graphs: int = 0
    graph_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def at_rest(self) -> EngineStats:
        """Give what has been counted, of an engine that holds no requests any more."""
        return replace(
            self,
            num_running=0,
            num_waiting=0,
            num_background_running=0,
            num_background_paused=0,
            num_background_waiting=0,
            kv_cache_usage=0.0,
        )

    @property
    def by_drafter(self) -> dict[str, DraftCounts]:
        """Drafts by who made them."""
        return self.speculation.by_drafter

    @property
    def draft_seconds(self) -> float:
        """Time spent drafting."""
        return self.speculation.draft_seconds

    @property
    def target_seconds(self) -> float:
        """Time spent in the target's passes, sampling included."""
        return self.speculation.verify_seconds

    @property
    def overhead_seconds(self) -> float:
        """Time of steps spent on anything else: scheduling, batching, booking."""
        return self.speculation.overhead_seconds
