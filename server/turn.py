"""One assistant turn, whatever the wire: what is asked for, and what comes back piece by piece.

Chat completions, Responses and Messages all turn their bodies into a `TurnRequest` and render the
`TurnDelta`s of the `Turn` in their own shapes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.errors import InvalidRequestError
from engine.request import FinishReason
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from server.answer_parser import AnswerParser, ParsedText
from server.answer_reading import AnswerReading
from server.answer_shape import either
from server.chat_template import RenderedChat, render_chat, template_text
from server.generation import ChoiceDelta, Generation
from server.protocol.provenance import Pass
from server.protocol.usage import Usage
from server.reasoning import choose_reasoning
from server.served import Served
from server.structured_outputs import json_schema_output
from server.tool_calls import ToolFormat, choose_tool_format
from server.tools import ANY_TOOL, Tool, ToolCallDelta, ToolChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What an assistant turn is asked for.

    Attributes:
        kind: how the call's id begins: `chatcmpl`, `resp`, `msg`.
        messages: as chat templates take them: `role`, `content` (text), and where they apply
            `name`, `tool_calls` (arguments as objects), `tool_call_id`, `reasoning_content`.
        params: sampling; without a structured output, which `response_format` and tools decide.
        tools: what may be called.
        tool_choice: whether and what must be called.
        parallel_tool_calls: whether one turn may hold several calls.
        response_format: the shape of the answer's text; None = free.
        template_options: further variables for the chat template.
        add_generation_prompt: whether the prompt ends where the assistant's turn begins.
        continue_final_message: the last message is continued instead of answered.
        prediction: what the caller thinks the answer will be.
        priority: lower is served first.
        cache_salt: turns with different salts share no cached prefix.
        timeout_s: seconds after which the turn is given up; None = the server's own limit.
        wants_provenance: whether it is told where the tokens come from.
    """

    kind: str
    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ANY_TOOL
    parallel_tool_calls: bool = True
    response_format: StructuredOutput | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    prediction: str | None = None
    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    wants_provenance: bool = False

    @property
    def offered_tools(self) -> Sequence[Tool]:
        """The tools that the model hears of."""
        return () if self.tool_choice.mode == "none" else self.tools


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDelta:
    """What one step added to one choice of a turn.

    Attributes:
        index: of the choice.
        reasoning: text of the model's thinking.
        content: text of the answer.
        tool_calls: what was added to calls.
        tokens: the tokens behind it, with their log probabilities.
        parts: what each token gave, in their order; at the end of the choice one more may follow.
        finish_reason: set once, on the last delta of the choice.
        stop_reason: the stop token or stop text that ended it, if one did.
    """

    index: int
    reasoning: str
    content: str
    tool_calls: list[ToolCallDelta]
    tokens: ChoiceDelta
    parts: Sequence[ParsedText] = ()
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: int | str | None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell yet."""
        has_text = bool(self.reasoning or self.content or self.tool_calls)
        has_news = self.finish_reason is not None or self.tokens.logprobs or self.passes
        return not has_text and not has_news

    @property
    def passes(self) -> Sequence[Pass]:
        """Where tokens come from; see `ChoiceDelta`."""
        return self.tokens.passes


def start_turn(served: Served, request: TurnRequest) -> Turn:
    """Check a turn and give it to the engine.

    What must be called, and the shape of the answer, hold by grammar; thinking before it is free.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_ready()
    for message in request.messages:
        served.check_length(str(message.get("content") or ""), "messages")
    prompt = render_turn(served, request)
    reading = _choose_reading(served, request, prompt)
    params = replace(
        request.params,
        structured_output=_shape(request, reading, served.tokenizer.get_added_vocab()),
        predicted_token_ids=_predicted(served, request.prediction),
    )
    generation = served.generate(
        request.kind,
        [prompt.token_ids],
        params,
        request.priority,
        request.cache_salt,
        timeout_s=request.timeout_s,
        shown_ids=reading.shown_ids(served.tokens),
        wants_provenance=request.wants_provenance,
    )
    return Turn(generation, prompt, reading.parser)


def render_turn(served: Served, request: TurnRequest) -> RenderedChat:
    """Give the prompt of a turn, without generating anything.

    Raises:
        InvalidRequestError: the model's template does not take or know what is given, or there is
            far more of it than the context holds.
        EngineError: the engine or the tokenizer is loading, or the engine is gone.
    """
    return render_chat(
        served.tokenizer,
        request.messages,
        tools=request.offered_tools,
        options=request.template_options,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        # Tools and many short messages are as long as long ones.
        check_text=lambda text: served.check_length(text, "messages"),
    )


class Turn:
    """An assistant turn being generated; iterate over it inside `async with turn.generation`.

    Args:
        generation: the engine's side of it.
        prompt: what is answered.
        make_parser: makes what takes one choice's text apart; gives None where all is content.

    Attributes:
        generation: gives the call's id and counts; leaving its context aborts what has not ended.
        prompt: what is answered.
    """

    def __init__(
        self,
        generation: Generation,
        prompt: RenderedChat,
        make_parser: Callable[[], AnswerParser | None],
    ) -> None:
        self.generation = generation
        self.prompt = prompt
        self._choices = [_Choice(make_parser()) for _ in range(generation.num_choices)]

    @property
    def usage(self) -> Usage:
        """Tokens so far, with what the answers' tokens were."""
        prediction = self.generation.prediction_counts
        return {
            **self.generation.usage,
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in self._choices),
                "audio_tokens": 0,
                "accepted_prediction_tokens": prediction.num_accepted_tokens,
                "rejected_prediction_tokens": prediction.num_rejected_tokens,
            },
        }

    async def __aiter__(self) -> AsyncIterator[TurnDelta]:
        async for tokens in self.generation:
            yield self._choices[tokens.index].take(tokens)


class _Choice:
    """One choice's text, taken apart as it grows.

    The parser is fed token by token, so that what is counted as thinking does not depend on how
    many tokens a step gave.
    """

    def __init__(self, parser: AnswerParser | None) -> None:
        self._parser = parser
        self._num_undecided_tokens = 0
        self.num_reasoning_tokens = 0

    def take(self, tokens: ChoiceDelta) -> TurnDelta:
        """Take apart what a step gave."""
        parts = [self._feed(piece) for piece in tokens.pieces]
        if tokens.finish_reason is not None and self._parser is not None:
            parts.append(self._counted(self._parser.finish()))
        return TurnDelta(
            index=tokens.index,
            reasoning="".join(part.reasoning for part in parts),
            content="".join(part.content for part in parts),
            tool_calls=_joined([call for part in parts for call in part.tool_calls]),
            tokens=tokens,
            parts=parts,
            finish_reason=self._finish_reason(tokens.finish_reason),
            stop_reason=tokens.stop_reason,
        )

    def _feed(self, piece: str) -> ParsedText:
        if self._parser is None:
            return ParsedText(content=piece)
        self._num_undecided_tokens += 1
        return self._counted(self._parser.feed(piece))

    def _counted(self, part: ParsedText) -> ParsedText:
        """Count the tokens that a part was made from, once it shows what they were."""
        if part.reasoning:
            self.num_reasoning_tokens += self._num_undecided_tokens
        if part.reasoning or part.content or part.tool_calls:
            self._num_undecided_tokens = 0
        return part

    def _finish_reason(
        self, reason: FinishReason | None
    ) -> Literal["stop", "length", "tool_calls"] | None:
        if reason is None:
            return None
        if reason is FinishReason.LENGTH:
            return "length"
        has_calls = self._parser is not None and self._parser.has_tool_calls
        return "tool_calls" if has_calls else "stop"


def _joined(calls: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join what one step added to the same call."""
    joined: list[ToolCallDelta] = []
    for call in calls:
        if joined and joined[-1].index == call.index:
            arguments = joined[-1].arguments + call.arguments
            joined[-1] = replace(joined[-1], arguments=arguments)
        else:
            joined.append(call)
    return joined


def _choose_reading(served: Served, request: TurnRequest, prompt: RenderedChat) -> AnswerReading:
    has_tools = bool(request.offered_tools)
    template = template_text(served.tokenizer, has_tools=has_tools)
    tools = choose_tool_format(served.tool_parser, template) if has_tools else None
    if has_tools and tools is None:
        raise InvalidRequestError(
            "tools: this server does not read calls (it was started with --tool-parser none).",
            param="tools",
            code="unsupported_parameter",
        )
    reasoning = choose_reasoning(served.reasoning_parser, template)
    starts_inside = reasoning is not None and reasoning.starts_inside(prompt.text)
    if request.continue_final_message and not starts_inside:
        # What is continued is past its thinking.
        reasoning = None
    return AnswerReading(tools, reasoning, starts_inside)


def _shape(
    request: TurnRequest, reading: AnswerReading, special_tokens: Mapping[str, int]
) -> StructuredOutput | None:
    """Decide what the answer must look like; None = anything goes.

    Where a call is demanded there is no text, and nothing for a shape of text to hold.
    """
    calls, text = _shape_of_calls(request, reading.tools, special_tokens), request.response_format
    if request.tool_choice.mode == "required":
        text = None
    if not reading.calls_cover_thinking:
        shapes = [shape for shape in (calls, text) if shape is not None]
        whole = either(*shapes) if len(shapes) == 2 else next(iter(shapes), None)
        return None if whole is None else reading.after_thinking(whole, special_tokens)
    # Such calls are described together with the thinking before them.
    if text is None:
        return calls
    text = reading.after_thinking(text, special_tokens)
    return text if calls is None else either(calls, text)


def _shape_of_calls(
    request: TurnRequest, form: ToolFormat | None, special_tokens: Mapping[str, int]
) -> StructuredOutput | None:
    """Decide what calls must look like; without a shape for text, it may be any text instead."""
    tools, choice = request.offered_tools, request.tool_choice
    # OpenAI's word for a named tool is: exactly one call of it.
    parallel = request.parallel_tool_calls and choice.name is None
    if choice.mode == "required":
        if form is None:
            raise _invalid("tool_choice", "a call is demanded, but no tools are given")
        _check_schemas(tools, lambda tool: choice.name in (None, tool.name))
        return form.grammar(tools, choice, parallel, special_tokens)
    if form is None:
        return None
    if request.response_format is None:
        _check_schemas(tools, lambda tool: tool.is_strict)
        return form.strict_grammar(tools, parallel, special_tokens)
    _check_schemas(tools, lambda tool: True)
    return form.grammar(tools, choice, parallel, special_tokens)


def _check_schemas(tools: Sequence[Tool], is_held: Callable[[Tool], bool]) -> None:
    """Refuse schemas of arguments that cannot be held."""
    for place, tool in enumerate(tools):
        if is_held(tool):
            json_schema_output(tool.parameters, param=f"tools[{place}].parameters")


def _predicted(served: Served, prediction: str | None) -> tuple[int, ...]:
    if not prediction:
        return ()
    return tuple(served.tokenizer.encode(prediction, add_special_tokens=False))


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}.", param=param, code="invalid_value")
