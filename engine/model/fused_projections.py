"""Linear layers that read the same input computed as one product; nothing of any architecture.

    [q | k | v] = input @ [Wq | Wk | Wv]^T        [gate | up] = input @ [Wgate | Wup]^T

The leading projection of a group computes the product and keeps what is the others' for them; each
of these takes its part if it is called with that very input, and computes it itself otherwise, so
the result is right in any order and for any input. Modules keep their places and names; their
weights are views of one tensor. A model that does not call a group together is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from engine.model.int8_weights import Int8Weight, become_int8, let_go_of_weight
from engine.model.linear import linear
from engine.model.packed_weights import PackedWeight, can_pack, pack

_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Group:
    """What a group's members share: themselves, and the parts that are not taken yet."""

    __slots__ = ("input", "members", "parts")

    def __init__(self, members: list[nn.Linear]) -> None:
        self.members = members
        self.input: torch.Tensor | None = None
        self.parts: dict[int, torch.Tensor] = {}

    @property
    def leading(self) -> _Leading:
        """The member that computes for all."""
        first = self.members[0]
        assert isinstance(first, _Leading), "a group is put together with it first"
        return first

    def take(self, index: int, given: torch.Tensor) -> torch.Tensor | None:
        """Give a member its part of the product of `given`, once; None where there is none."""
        if given is not self.input or index not in self.parts:
            return None
        part = self.parts.pop(index)
        if not self.parts:
            self.input = None
        return part


class _Member(nn.Linear):
    """One projection of a group.

    Attributes:
        group: what it shares with the others.
        index: its place among them.
    """

    group: _Group
    index: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Take what the leading projection computed, or compute it.

        Args:
            input: [..., in_features].

        Returns:
            [..., out_features]; where it was computed together, its rows are strided.
        """
        part = self.group.take(self.index, input)
        return self._alone(input) if part is None else part

    def _alone(self, input: torch.Tensor) -> torch.Tensor:
        leading = self.group.leading
        if leading.int8 is not None:
            product = leading.int8.multiply(input)
            parts: tuple[torch.Tensor, ...] = product.split(leading.sizes, dim=-1)
            return parts[self.index]
        return linear(input, self.weight, self.bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move or cast; the weights would no longer be views of one tensor, so they part first."""
        _separate(self.group)
        return self._apply(fn, recurse)


class _Leading(_Member):
    """The projection that is called first, and computes for all.

    Attributes:
        fused_weight: [sum of out_features, in_features]; None where it was reordered or rounded.
        packed: the same, reordered for a CPU; None elsewhere.
        int8: the same, rounded to 8 bits; None elsewhere.
        fused_bias: [sum of out_features], or None.
        sizes: out_features of each member.
    """

    fused_weight: torch.Tensor | None
    packed: PackedWeight | None
    int8: Int8Weight | None
    fused_bias: torch.Tensor | None
    sizes: tuple[int, ...]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute the whole product; the others' parts wait for them.

        Args:
            input: [..., in_features].

        Returns:
            [..., out_features], its rows strided.
        """
        product = self._multiply(input)
        parts: tuple[torch.Tensor, ...] = product.split(self.sizes, dim=-1)
        self.group.input = input
        self.group.parts = dict(enumerate(parts[1:], start=1))
        return parts[0]

    def _multiply(self, input: torch.Tensor) -> torch.Tensor:
        if self.int8 is not None:
            return self.int8.multiply(input)
        if self.fused_weight is not None:
            return linear(input, self.fused_weight, self.fused_bias)
        if self.packed is not None and not torch.compiler.is_compiling():
            return self.packed.multiply(input, self.fused_bias)
        members = self.group.members
        return torch.cat([linear(input, m.weight, m.bias) for m in members], dim=-1)


def fuse(model: nn.Module, *, packs: bool = False, quantises: bool = False) -> int:
    """Fuse the plain projections of a model that read the same input, in place.

    Quantised, adapted and otherwise special modules stay as they are, and so do those whose weights
    are shared with others. At most one group's weights exist twice at a time.

    Args:
        model: whose projections.
        packs: whether weights are reordered for a CPU.
        quantises: whether they are rounded to 8 bits instead; the float ones go.

    Returns:
        How many groups were fused.
    """
    owners = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )
    fused = 0
    for parent in model.modules():
        for names in _GROUPS:
            found = [parent._modules.get(name) for name in names]
            members = [module for module in found if type(module) is nn.Linear]
            if len(members) == len(names) and _fit_together(members, owners):
                _fuse(members, packs=packs, quantises=quantises)
                fused += 1
    return fused


def separate_unshared(model: nn.Module) -> int:
    """Take apart the groups of which a forward pass has just left parts behind.

    Returns:
        How many groups were taken apart.
    """
    left = [group for group in _groups(model) if group.parts]
    for group in left:
        _separate(group)
    return len(left)


def _groups(model: nn.Module) -> Iterator[_Group]:
    for module in model.modules():
        if isinstance(module, _Leading):
            yield module.group


def _fit_together(members: list[nn.Linear], owners: Counter[int]) -> bool:
    first = members[0]
    return all(
        member.in_features == first.in_features
        and (member.weight.dtype, member.weight.device, member.weight.layout)
        == (first.weight.dtype, first.weight.device, first.weight.layout)
        and type(member.weight) is nn.Parameter
        and (member.bias is None) == (first.bias is None)
        and "forward" not in vars(member)
        and all(owners[id(weight)] == 1 for weight in member.parameters())
        for member in members
    )


@torch.no_grad()
def _fuse(members: list[nn.Linear], *, packs: bool, quantises: bool) -> None:
    group = _Group(members)
    sizes = tuple(member.out_features for member in members)
    fused = torch.cat([member.weight for member in members])
    has_bias = members[0].bias is not None
    fused_bias = torch.cat([member.bias for member in members]) if has_bias else None
    is_paired = len(members) == 2 and members[0].out_features == members[1].out_features
    int8 = Int8Weight.of(fused, fused_bias, is_paired=is_paired) if quantises else None
    can = int8 is None and packs and can_pack(fused)
    packed = pack(fused, is_paired=is_paired) if can else None
    if int8 is not None:
        for member in members:
            let_go_of_weight(member)
    elif packed is None:
        _share(members, fused, fused_bias, sizes)
    for index, member in enumerate(members):
        member.__class__ = _Member if index else _Leading
        assert isinstance(member, _Member), "its class has just been set"
        member.group, member.index = group, index
    leading = members[0]
    assert isinstance(leading, _Leading), "its class has just been set"
    leading.fused_weight = fused if packed is None and int8 is None else None
    leading.packed, leading.int8 = packed, int8
    leading.fused_bias, leading.sizes = fused_bias, sizes
    _give_back(fused)


def _share(
    members: list[nn.Linear],
    fused: torch.Tensor,
    fused_bias: torch.Tensor | None,
    sizes: tuple[int, ...],
) -> None:
    """Make the members' weights views of the fused ones."""
    weights, biases = fused.split(sizes), None if fused_bias is None else fused_bias.split(sizes)
    for index, member in enumerate(members):
        needs_grad = member.weight.requires_grad
        member.weight = nn.Parameter(weights[index], requires_grad=needs_grad)
        if biases is not None:
            member.bias = nn.Parameter(biases[index], requires_grad=needs_grad)


@torch.no_grad()
def _separate(group: _Group) -> None:
    """Make a group's members plain projections with weights of their own."""
    int8, sizes, end = group.leading.int8, group.leading.sizes, 0
    for member, size in zip(group.members, sizes, strict=True):
        for name in ("group", "index", "fused_weight", "packed", "int8", "fused_bias", "sizes"):
            vars(member).pop(name, None)
        member._modules.pop("int8", None)
        member.__class__ = nn.Linear
        end += size
        if int8 is not None:
            become_int8(member, int8.outputs(end - size, end, member.bias))
        for name, weight in list(member.named_parameters()):
            setattr(member, name, nn.Parameter(weight.clone(), weight.requires_grad))
    group.input, group.parts = None, {}


def _give_back(fused: torch.Tensor) -> None:
    """Return what the separate weights had to the device, or pieces too small to use pile up."""
    if fused.device.type == "cuda":
        torch.cuda.empty_cache()
