"""Simple nets, all members of a stack in one call: their channels side by side, one grouped convolution for all.

torch's own ``vmap`` rule for a convolution with mapped weights moves tensors between two layouts around every layer,
and pools in the slow one. A net made only of the layers below runs two to three times faster by the rules written here;
every other net takes torch's. Nobody but ``Stack`` and ``fit`` knows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.nets.pixels import Pixels

Tensors = dict[str, Tensor]


def call_alone(net: nn.Module, tensors: Tensors, images: Tensor) -> Float[Tensor, "n classes"]:
    """Logits of one model with these weights and buffers."""
    return cast(Tensor, functional_call(net, tensors, (images,)))


def call_member(net: nn.Module, tensors: Tensors, images: Tensor) -> Float[Tensor, "n classes"]:
    """The same inside a ``vmap`` over members."""
    if not is_simple(net):
        return call_alone(net, tensors, images)
    return cast(Tensor, _AllMembers.apply(net, tuple(tensors), images, *tensors.values()))  # type: ignore[no-untyped-call]


def is_simple(net: nn.Module) -> bool:
    """Is it a chain of the layers known here, each used once, without hooks?"""
    chain = _chain(net)
    weights = [f"{name}.{own}" for name, layer in chain for own, _ in layer.named_parameters()]
    return all(_knows(layer) for _, layer in chain) and weights == [name for name, _ in net.named_parameters()]


class _AllMembers(torch.autograd.Function):
    """A forward pass with a ``vmap`` rule of its own.

    What runs inside ``vmap`` is differentiated as usual; ``backward`` serves losses that differentiate within it.
    """

    @staticmethod
    def forward(net: nn.Module, names: tuple[str, ...], images: Tensor, *tensors: Tensor) -> Tensor:
        return call_alone(net, dict(zip(names, tensors, strict=True)), images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.net, ctx.names = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        smooth = {at: tensor for at, tensor in enumerate(held) if tensor.is_floating_point()}

        def again(some: dict[int, Tensor]) -> Tensor:
            return _AllMembers.forward(ctx.net, ctx.names, *(some.get(at, tensor) for at, tensor in enumerate(held)))

        (found,) = vjp(again, smooth)[1](slope)
        return None, None, *(found.get(at) for at in range(len(held)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], net: nn.Module, names: tuple[str, ...], *given: Tensor) -> tuple[Tensor, int]:
        k = info.batch_size
        x, *tensors = (t.expand(k, *t.shape) if at is None else t.movedim(at, 0) for t, at in zip(given, in_dims[2:], strict=True))
        held = dict(zip(names, tensors, strict=True))
        for name, layer in _chain(net):
            own = {own: held[f"{name}.{own}"] for own in (*layer._parameters, *layer._buffers) if f"{name}.{own}" in held}
            x = _LAYERS[type(layer)](layer, x, own)
        return x, 0


def _chain(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    if type(net) is not nn.Sequential:
        return [(prefix, net)]
    # not named_children(), which passes over the second use of a layer
    return [found for name, layer in net._modules.items() if layer is not None for found in _chain(layer, f"{prefix}.{name}" if prefix else name)]


def _knows(layer: nn.Module) -> bool:
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    usual = all(getattr(layer, name) == value for name, value in _USUAL.get(type(layer), {}).items())
    return type(layer) in _LAYERS and usual and not hooked and getattr(layer, "momentum", 0) is not None


def _beside(x: Float[Tensor, "k n c h w"], layout: torch.memory_format = torch.channels_last) -> Float[Tensor, "n k*c h w"]:
    return x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=layout)  # channels last, pooling is 10x faster


def _apart(x: Float[Tensor, "n k*c h w"], k: int) -> Float[Tensor, "k n c h w"]:
    n, channels, h, w = x.shape
    return x.view(n, k, channels // k, h, w).transpose(0, 1)


def _conv(layer: nn.Conv2d, x: Tensor, own: Tensors) -> Tensor:
    bias = own["bias"].flatten() if "bias" in own else None
    y = F.conv2d(_beside(x), own["weight"].flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, len(x) * layer.groups)
    return _apart(y, len(x))


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, own: Tensors) -> Tensor:
    if layer.training:
        own["num_batches_tracked"].add_(1)
    mean, var, weight, bias = (own[name].flatten() for name in ("running_mean", "running_var", "weight", "bias"))  # views: updated in place
    # Height and width as one, so that there is but one layout: in channels last torch 2.13 sums in single precision (errors
    # 30x larger), and its backward misreads the slopes of a single image, whose strides may mean either layout.
    flat = _beside(x, torch.contiguous_format).flatten(2)
    y = F.batch_norm(flat, mean, var, weight, bias, layer.training, cast(float, layer.momentum), layer.eps)
    return _apart(y.view(len(y), -1, *x.shape[3:]), len(x))


def _linear(layer: nn.Linear, x: Tensor, own: Tensors) -> Tensor:
    rows, weight = x.flatten(1, -2), own["weight"].transpose(1, 2)
    y = torch.baddbmm(own["bias"].unsqueeze(1), rows, weight) if "bias" in own else torch.bmm(rows, weight)
    return y.view(*x.shape[:-1], -1)


def _pool(layer: nn.Module, x: Tensor, own: Tensors) -> Tensor:
    return _apart(layer(_beside(x)), len(x))


def _pointwise(layer: nn.Module, x: Tensor, own: Tensors) -> Tensor:
    return cast(Tensor, layer(x))


# How a layer runs on x [k, n, ...] with its own tensors [k, ...]. Exact types only: a subclass may compute something else.
_LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Tensors], Tensor]] = {
    Pixels: _pointwise,
    nn.ReLU: _pointwise,
    nn.Flatten: lambda layer, x, own: x.flatten(2),
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
}
_USUAL: dict[type[nn.Module], dict[str, object]] = {
    nn.Flatten: {"start_dim": 1, "end_dim": -1},
    nn.Conv2d: {"padding_mode": "zeros"},
    nn.BatchNorm2d: {"affine": True, "track_running_stats": True},
    nn.MaxPool2d: {"return_indices": False},
}
