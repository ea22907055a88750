"""Plain completions: from a request body to a running answer in completions' shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.errors import InvalidRequestError
from engine.request import TokenLogprobs
from engine.sampling_params import SamplingParams
from server.answer_shape import answer_shape
from server.answers import Answer
from server.completion_deltas import (
    CollectedCompletion,
    CompletionDelta,
    CompletionDeltas,
    Opening,
)
from server.generation import Generation
from server.logprobs import completion_logprobs, joined_logprobs, prompt_logprobs
from server.prompts import Prompt, read_prompts
from server.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from server.protocol.usage import Usage
from server.sampling import sampling_params, wants_provenance
from server.served import Served


def start_completion(served: Served, body: CompletionRequest) -> CompletionAnswer:
    """Check a completion request and give it to the engine.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_model(body.model)
    served.check_ready()
    _check_combinations(body)
    params = _params(served, body)
    prompts = read_prompts(body, served)
    generation = served.generate(
        "cmpl",
        [prompt.token_ids for prompt in prompts],
        params,
        body.priority,
        body.cache_salt,
        timeout_s=body.timeout,
        wants_provenance=wants_provenance(body),
    )
    return CompletionAnswer(served, body, generation, prompts)


class CompletionAnswer(Answer[CompletionDelta, CollectedCompletion]):
    """A plain completion.

    Args:
        served: what is served.
        body: the request.
        generation: as many choices for each prompt.
        prompts: of the request.
    """

    stream_object = "text_completion"
    whole_object = "text_completion"

    def __init__(
        self,
        served: Served,
        body: CompletionRequest,
        generation: Generation,
        prompts: Sequence[Prompt],
    ) -> None:
        super().__init__(served, body, generation)
        self._body = body
        self._prompts = prompts
        self._num_each = generation.num_choices // len(prompts)

    def _deltas(self) -> CompletionDeltas:
        return CompletionDeltas(
            self.generation,
            self._prompts,
            has_openings=bool(self._body.echo) or self._body.prompt_logprobs is not None,
            has_scores=_num_prompt_logprobs(self._body) is not None,
        )

    def _new_choice(self, index: int) -> CollectedCompletion:
        return CollectedCompletion(index)

    def _opening(self, index: int) -> list[CompletionChoice]:
        return []

    def _usage(self) -> Usage:
        prediction = self.generation.prediction_counts
        return {
            **self.generation.usage,
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": prediction.num_accepted_tokens,
                "rejected_prediction_tokens": prediction.num_rejected_tokens,
            },
        }

    def _addition(self, delta: CompletionDelta) -> CompletionChoice:
        if delta.tokens is None:
            assert delta.opening is not None, "a delta has something to tell"
            return self._begin(delta.index, delta.opening)
        tokens = delta.tokens
        choice: CompletionChoice = {
            "index": delta.index,
            "text": tokens.text,
            "logprobs": self._logprobs(
                self._prompts[delta.index // self._num_each],
                tokens.token_ids,
                tokens.logprobs,
                tokens.token_offsets,
            ),
            "finish_reason": tokens.finish_reason,
        }
        if tokens.finish_reason is not None:
            choice["stop_reason"] = tokens.stop_reason
        return choice

    def _begin(self, index: int, opening: Opening) -> CompletionChoice:
        """Give what is told of the prompt."""
        echo = opening.prompt.echo
        choice: CompletionChoice = {
            "index": index,
            "text": "" if echo is None else echo.text,
            "logprobs": self._echoed_logprobs(opening),
            "finish_reason": None,
        }
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                self._tokens, opening.prompt.token_ids, opening.scores, self._body.prompt_logprobs
            )
        return choice

    def _whole(self, choice: CollectedCompletion) -> CompletionChoice:
        prompt = self._prompts[choice.index // self._num_each]
        answer: CompletionChoice = {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(
                prompt, choice.token_ids, choice.logprobs, choice.token_offsets
            ),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if choice.opening is None:
            return answer
        begun = self._begin(choice.index, choice.opening)
        logprobs = joined_logprobs(begun["logprobs"], answer["logprobs"])
        return {**begun, **answer, "text": begun["text"] + choice.text, "logprobs": logprobs}

    def _whole_answer(self, choices: Sequence[CollectedCompletion]) -> dict[str, Any]:
        """Give the best choices of each prompt, numbered anew."""
        answer = super()._whole_answer(choices)
        num_wanted = self._body.n or 1
        if num_wanted == self._num_each:
            return answer
        best = []
        for first in range(0, len(choices), self._num_each):
            candidates = range(first, first + self._num_each)
            ranked = sorted(candidates, key=lambda index: -choices[index].mean_logprob)
            best += [answer["choices"][index] for index in ranked[:num_wanted]]
        return {**answer, "choices": [{**choice, "index": i} for i, choice in enumerate(best)]}

    def _echoed_logprobs(self, opening: Opening) -> CompletionLogprobs | None:
        echo, num_top = opening.prompt.echo, self._body.logprobs
        if echo is None or num_top is None:
            return None
        scores = [None, *opening.scores]
        return completion_logprobs(
            self._tokens, opening.prompt.token_ids, scores, echo.token_offsets, num_top
        )

    def _logprobs(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
        entries: Sequence[TokenLogprobs] | None,
        offsets: Sequence[int],
    ) -> CompletionLogprobs | None:
        if not entries or self._body.logprobs is None:
            return None
        start = 0 if prompt.echo is None else len(prompt.echo.text)
        placed = [start + offset for offset in offsets]
        return completion_logprobs(self._tokens, token_ids, entries, placed, self._body.logprobs)


def _params(served: Served, body: CompletionRequest) -> SamplingParams:
    num_choices = body.best_of or body.n or 1
    is_ranked = num_choices > (body.n or 1)
    params = sampling_params(
        body,
        served.tokenizer,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=0 if is_ranked and body.logprobs is None else body.logprobs,
    )
    predicted: list[int] = []
    if body.prediction is not None:
        predicted = served.tokenizer.encode(body.prediction.text, add_special_tokens=False)
    return replace(
        params,
        n=num_choices if is_ranked else params.n,
        prompt_logprobs=_num_prompt_logprobs(body),
        structured_output=answer_shape(body),
        predicted_token_ids=tuple(predicted),
    )


def _num_prompt_logprobs(body: CompletionRequest) -> int | None:
    """Give the alternatives per prompt token; None = the prompt is not scored."""
    wanted = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((number for number in wanted if number is not None), default=None)


def _check_combinations(body: CompletionRequest) -> None:
    wanted = body.n or 1
    if body.best_of is not None and body.best_of < wanted:
        raise _invalid("best_of", f"{body.best_of} is below n ({wanted})")
    if body.best_of is not None and body.best_of > wanted and body.stream:
        raise _invalid("best_of", "which answers are best is not known while they stream")
    if body.suffix and body.echo:
        raise _invalid("echo", "a prompt with a suffix cannot be echoed")


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}.", param=param, code="invalid_value")
