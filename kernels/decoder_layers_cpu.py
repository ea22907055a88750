"""Decoder layers of the usual kind on a CPU: all of them in one call of a C function.

    h = h + output(attention(rotate(projections(norm(h)))))
    h = h + down(activation(gate(norm(h))) * up(norm(h)))

Norms are root mean square (1910.07467), of queries' and keys' heads too where they have weights;
rotation is of the first `rotary_dim` numbers of a head, by halves (2104.09864); the activation is
SiLU, or GELU by tanh. Keys and values go into the paged cache, and attention is
`paged_attention_cpu`'s. Between two layers nothing returns to Python, whose calls take longer than
what they call where a model is small. Knows weights and slots, and nothing of models.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from kernels.native_library import native_library
from kernels.packed_matrix import NAMES, SOURCE, MatrixStruct, PackedMatrix
from kernels.paged_attention_cpu import AttendedRows

SILU, GELU_TANH = 3, 4  # `enum Finish`
_UNKNOWN_TOKEN = 2


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "inner_norm")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm")),
        *((name, MatrixStruct) for name in ("projections", "output", "gate_and_up", "down")),
        *((name, ctypes.c_void_p) for name in ("key_cache", "value_cache")),
        ("window", ctypes.c_int64),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("num_layers", "hidden", "inner", "num_heads", "num_kv_heads", "head_dim"),
                *("rotary_dim", "block_size", "activation"),
            )
        ),
        *((name, ctypes.c_float) for name in ("epsilon", "head_epsilon", "scaling", "softcap")),
    )


class _Ends(ctypes.Structure):
    _fields_ = (
        ("embedding", ctypes.c_void_p),
        ("num_tokens", ctypes.c_int64),
        ("norm", ctypes.c_void_p),
        ("head", MatrixStruct),
    )


class _Pass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "cos", "sin", "positions", "slots")),
        *((name, ctypes.c_void_p) for name in ("rows", "visible", "requests", "tables")),
        *((name, ctypes.c_int64) for name in ("num_rows", "table_width", "num_threads")),
        ("ends", ctypes.POINTER(_Ends)),
        *((name, ctypes.c_void_p) for name in ("token_ids", "logits_rows", "logits")),
        ("num_logits", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """What one layer computes with; norms are float32.

    Attributes:
        input_norm: [hidden].
        inner_norm: [hidden], in front of the gated part.
        query_norm: [head_dim], or None.
        key_norm: [head_dim], or None.
        projections: queries, keys and values, in this order.
        output: of attention.
        gate_and_up: paired.
        down: of the gated part.
        window: keys a row sees, itself included; None = all.
    """

    input_norm: torch.Tensor
    inner_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    projections: PackedMatrix
    output: PackedMatrix
    gate_and_up: PackedMatrix
    down: PackedMatrix
    window: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ModelEnds:
    """What stands in front of the layers and behind them.

    Attributes:
        embedding: [num_tokens, hidden], the caches' dtype, contiguous.
        norm: [hidden] float32, with the layers' epsilon.
        head: to logits.
        cos: [num_positions, rotary_dim] float32, contiguous.
        sin: as `cos`.
    """

    embedding: torch.Tensor
    norm: torch.Tensor
    head: PackedMatrix
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What all layers have in common.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: numbers of a head, of keys and of values.
        activation: `SILU` or `GELU_TANH`.
        epsilon: of the norms of rows.
        head_epsilon: of the norms of heads.
        scaling: factor on attention's dot products.
        softcap: bound of its scores; None = unbounded.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: int
    epsilon: float
    head_epsilon: float
    scaling: float
    softcap: float | None


class DecoderLayers:
    """Layers over one paged cache.

    Args:
        shape: of all layers.
        weights: of each.
        caches: the key and value cache of each, [num_blocks, block_size, num_kv_heads, head_dim]
            of a dtype that the weights take, contiguous.
        ends: of the model, for `run_model`.

    Raises:
        ValueError: a weight does not fit the shape.
    """

    def __init__(
        self,
        shape: DecoderShape,
        weights: Sequence[LayerWeights],
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        ends: ModelEnds | None = None,
    ) -> None:
        first = weights[0]
        self._dtype = caches[0][0].dtype
        self._hidden = first.down.outputs
        for own in weights:
            check_weights(shape, own, self._hidden, self._dtype)
        if ends is not None:
            check_ends(ends, self._hidden, self._dtype)
        self._weights, self._caches = list(weights), list(caches)  # kept alive
        made = [_layer(own, *pair) for own, pair in zip(weights, caches, strict=True)]
        self._layers = (_Layer * len(made))(*made)
        self._decoder = _Decoder(
            self._layers, len(made), self._hidden, first.down.depth,
            shape.num_heads, shape.num_kv_heads, shape.head_dim, 0, caches[0][0].shape[1],
            shape.activation, shape.epsilon, shape.head_epsilon, shape.scaling,
            shape.softcap or 0.0,
        )  # fmt: skip
        self._run = _function(self._dtype)
        self._ends = ends
        self._given_ends = None if ends is None else _given_ends(ends)

    def run(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slot_mapping: torch.Tensor,
        attended: AttendedRows,
    ) -> None:
        """Compute rows' hidden states, in place, and their keys and values.

        Args:
            hidden: [num_rows, hidden] float32, contiguous.
            cos: [num_rows, rotary_dim] float32, contiguous.
            sin: as `cos`.
            slot_mapping: [num_rows] int64, where each row's key and value go.
            attended: all rows.

        Raises:
            MemoryError: there is no memory for what layers hand on.
        """
        positions = torch.arange(hidden.shape[0])
        self._call(_given(hidden, cos, sin, positions, slot_mapping, attended), cos)

    def run_model(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        attended: AttendedRows,
        logits_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Compute rows' keys and values, and logits of some of them.

        Args:
            token_ids: [num_rows] int64.
            positions: [num_rows] int64, below the number that the ends have.
            slot_mapping: [num_rows] int64.
            attended: all rows.
            logits_rows: [num_logits] int64.

        Returns:
            [num_logits, vocab] float32.

        Raises:
            IndexError: a token is unknown.
            MemoryError: there is no memory for what layers hand on.
        """
        run = self.prepare(
            token_ids.contiguous(),
            positions.contiguous(),
            slot_mapping.contiguous(),
            attended,
            logits_rows.contiguous(),
        )
        return run()

    def prepare(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        attended: AttendedRows,
        logits_rows: torch.Tensor,
    ) -> Callable[[], torch.Tensor]:
        """Lay out a pass of the whole model; arguments are those of `run_model`, contiguous.

        Returns:
            What runs it over whatever the arguments then hold. Its logits lie where those of the
            time before did.
        """
        ends = self._ends
        assert ends is not None, "made without ends"
        hidden = torch.empty(token_ids.shape[0], self._hidden)
        logits = torch.empty(logits_rows.shape[0], ends.head.outputs)
        given = _given(hidden, ends.cos, ends.sin, positions, slot_mapping, attended)
        given.ends = ctypes.pointer(self._given_ends)
        given.token_ids, given.logits_rows = token_ids.data_ptr(), logits_rows.data_ptr()
        given.logits, given.num_logits = logits.data_ptr(), logits_rows.shape[0]
        kept = (hidden, token_ids, positions, slot_mapping, attended, logits_rows)

        def run() -> torch.Tensor:
            assert kept, "what the pass points to is alive"
            self._call(given, ends.cos)
            return logits

        return run

    def _call(self, given: _Pass, cos: torch.Tensor) -> None:
        self._decoder.rotary_dim = cos.shape[1]
        failure = self._run(self._decoder, given)
        if failure == _UNKNOWN_TOKEN:
            raise IndexError("a token has no line in the embedding.")
        if failure:
            raise MemoryError(f"no memory for {given.num_rows} rows of a pass.")


def check_weights(
    shape: DecoderShape, weights: LayerWeights, hidden: int, dtype: torch.dtype
) -> None:
    """Check that a layer's weights fit together, and take rows of a type.

    Raises:
        ValueError: one does not.
    """
    queries = shape.num_heads * shape.head_dim
    projected = queries + 2 * shape.num_kv_heads * shape.head_dim
    inner = weights.down.depth
    wanted = {
        "projections": (projected, hidden),
        "output": (hidden, queries),
        "gate_and_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    for name, expected in wanted.items():
        matrix: PackedMatrix = getattr(weights, name)
        if (matrix.outputs, matrix.depth) != expected or (
            matrix.is_paired != (name == "gate_and_up")
        ):
            raise ValueError(f"{name} is {matrix.outputs} by {matrix.depth}, not {expected}.")
        _check_type(name, matrix, dtype)
    norms = (weights.input_norm, weights.inner_norm, weights.query_norm, weights.key_norm)
    for norm, size in zip(norms, (hidden, hidden, shape.head_dim, shape.head_dim), strict=True):
        if norm is not None and (norm.shape != (size,) or norm.dtype != torch.float32):
            raise ValueError(f"a norm is {list(norm.shape)} {norm.dtype}, not [{size}] float32.")


def check_ends(ends: ModelEnds, hidden: int, dtype: torch.dtype) -> None:
    """Check that a model's ends fit together, and hold rows of a type.

    Raises:
        ValueError: one does not.
    """
    embedding, norm, head = ends.embedding, ends.norm, ends.head
    if embedding.shape[1] != hidden or embedding.dtype != dtype or not embedding.is_contiguous():
        raise ValueError(
            f"the embedding is {list(embedding.shape)} {embedding.dtype} of strides "
            f"{embedding.stride()}, not [tokens, {hidden}] {dtype}, row by row."
        )
    if norm.shape != (hidden,) or norm.dtype != torch.float32:
        raise ValueError(f"a norm is {list(norm.shape)} {norm.dtype}, not [{hidden}] float32.")
    if head.depth != hidden or head.is_paired:
        raise ValueError(f"the head is {head.outputs} by {head.depth}, not of {hidden}.")
    _check_type("head", head, dtype)


def _check_type(name: str, matrix: PackedMatrix, dtype: torch.dtype) -> None:
    if not matrix.takes(dtype):
        raise ValueError(f"{name} is of {matrix.panels.dtype}, which takes no {dtype} rows.")


def _layer(weights: LayerWeights, key_cache: torch.Tensor, value_cache: torch.Tensor) -> _Layer:
    norms = (weights.input_norm, weights.inner_norm, weights.query_norm, weights.key_norm)
    return _Layer(
        *(None if norm is None else norm.data_ptr() for norm in norms),
        weights.projections.struct,
        weights.output.struct,
        weights.gate_and_up.struct,
        weights.down.struct,
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        weights.window or 0,
    )


def _given_ends(ends: ModelEnds) -> _Ends:
    embedding, norm = ends.embedding.data_ptr(), ends.norm.data_ptr()
    return _Ends(embedding, ends.embedding.shape[0], norm, ends.head.struct)


def _given(
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    attended: AttendedRows,
) -> _Pass:
    return _Pass(
        hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(),
        slot_mapping.data_ptr(), *attended.addresses,
        hidden.shape[0], attended.table_width, torch.get_num_threads(),
    )  # fmt: skip


@lru_cache
def _function(dtype: torch.dtype) -> Callable[[_Decoder, _Pass], int]:
    library = native_library(SOURCE)
    assert library is not None, "asked for where it does not serve"
    function = getattr(library, f"run_layers_{NAMES[dtype]}")
    function.argtypes = (ctypes.POINTER(_Decoder), ctypes.POINTER(_Pass))
    made: Callable[[_Decoder, _Pass], int] = function
    return made
