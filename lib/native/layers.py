"""ConvMixer's layers in a few passes over memory, for a CPU: drop-in, with the same parameters and the same gradients.

`accelerate(model)` changes the classes of a model's parts, never its parameters, names or state-dict keys. The native
source is layers.c; where it cannot run (no compiler, another device, torch.compile) the plain PyTorch layers do.

The type that activations are stored in and the arithmetic that works on them are two choices. Activations in bfloat16
can be multiplied as floats or with the processor's dot products of bfloat16 pairs: whichever is faster there.
"""

import contextlib
import ctypes
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.model import ConvMixer
from lib.native import compiler
from lib.params import ParameterError

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}  # how activations are stored: the suffix of the entries
DOT = "bf16_dot"  # the suffix of those that multiply activations in bfloat16 with dot products


# ------------------------------------------------------------------------------------------------ the native side


def fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Norm(Structure):
    """`norm` of layers.c."""

    _fields_ = (
        *fields(c_void_p, "weight", "bias", "mean", "rstd", "running_mean", "running_var", "d_weight", "d_bias"),
        ("momentum", c_double),
        ("eps", c_double),
        ("batch", c_int64),
    )


class Layer(Structure):
    """`layer` of layers.c."""

    _fields_ = (
        *fields(c_int64, "batch", "height", "width", "dim", "inputs", "kernel", "threads"),
        *fields(c_void_p, "x", "y", "u", "out", "dout", "dz", "dx"),
        *fields(c_void_p, "depthwise_weight", "depthwise_bias", "pointwise_weight", "pointwise_bias"),
        *fields(c_void_p, "d_depthwise_weight", "d_depthwise_bias", "d_pointwise_weight", "d_pointwise_bias"),
        ("norm1", Norm),
        ("norm2", Norm),
    )


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled layers.c, or None."""
    code = compiler.load("layers")
    if code is None:
        return None
    code.layers_lanes.restype = c_int64
    for suffix in (*DTYPES.values(), DOT):
        for way in ("forward", "backward"):
            function = getattr(code, f"layers_{way}_{suffix}", None)
            if function is not None:  # DOT is not everywhere
                function.argtypes, function.restype = [POINTER(Layer)], None
    # PyTorch has loaded its OpenMP for all to see, but for macOS. Where there is none, one thread does everything.
    openmp = str(Path(torch.__file__).with_name("lib") / "libomp.dylib") if sys.platform == "darwin" else None
    with contextlib.suppress(OSError, AttributeError):
        code.layers_use_team(ctypes.cast(ctypes.CDLL(openmp).GOMP_parallel, c_void_p))
    return code


def code_name() -> str | None:
    """The name of the compiled code, or None: the same for the same source, compiler and kind of processor."""
    return Path(compiled()._name).stem if compiled() else None


def keep_memory() -> None:
    """Makes glibc keep freed memory from here on: a step then neither maps nor zeroes its activations."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


# ------------------------------------------------------------------------------------------------ autograd


def padded(tensor: Tensor | None, *sizes: int) -> Tensor | None:
    """`tensor` contiguous, with zeros after its end in the leading dimensions until they are `sizes` long."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    for dim, size in enumerate(sizes):
        if tensor.shape[dim] < size:
            more = tensor.new_zeros(*tensor.shape[:dim], size - tensor.shape[dim], *tensor.shape[dim + 1 :])
            tensor = torch.cat([tensor, more], dim)
    return tensor.contiguous()


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Statistics:
    """What one BatchNorm does in one call: whose statistics it uses, and where they go."""

    def __init__(self, norm: nn.BatchNorm2d, dim: int):
        self.batch = norm.training
        self.eps = norm.eps
        self.momentum = 0.0
        self.running = (None, None)
        if self.batch:
            norm.num_batches_tracked.add_(1)
            self.momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            self.running = (padded(norm.running_mean, dim), padded(norm.running_var, dim))
            self.mean, self.rstd = torch.empty(2, dim)
        else:
            self.mean = padded(norm.running_mean.clone(), dim)  # another call may change it before backward
            self.rstd = padded((norm.running_var + norm.eps).rsqrt(), dim)

    def write_back(self, norm: nn.BatchNorm2d) -> None:
        """Copies the running statistics to the module where they had to be padded (else they were updated in place)."""
        for own, padded_copy in zip((norm.running_mean, norm.running_var), self.running, strict=True):
            if padded_copy is not None and padded_copy.data_ptr() != own.data_ptr():
                own.copy_(padded_copy[: own.shape[0]])

    def native(
        self, weight: Tensor, bias: Tensor, d_weight: Tensor | None = None, d_bias: Tensor | None = None
    ) -> Norm:
        tensors = (weight, bias, self.mean, self.rstd, *self.running, d_weight, d_bias)
        return Norm(*map(address, tensors), self.momentum, self.eps, self.batch)


class Call:
    """The fixed part of a layer's native call: sizes, number type and arithmetic."""

    def __init__(
        self, shape: tuple[int, ...], outputs: int, kernel: int, dtype: torch.dtype, arithmetic: str = "float32"
    ):
        self.native = compiled()
        self.lanes = self.native.layers_lanes()
        self.batch, self.inputs, self.height, self.width = shape
        self.outputs, self.kernel, self.dtype = outputs, kernel, dtype
        self.suffix = DOT if arithmetic == "dot" else DTYPES[dtype]
        self.in_dim, self.out_dim = self.round_up(self.inputs), self.round_up(outputs)

    def round_up(self, dim: int) -> int:
        return -(-dim // self.lanes) * self.lanes

    def empty(self, dim: int) -> Tensor:
        return torch.empty(self.batch, self.height, self.width, dim, dtype=self.dtype)  # (B, H, W, dim)

    def rows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any layout and type -> (B, H, W, C rounded up to whole vectors), without a copy if it can."""
        x = x.detach().permute(0, 2, 3, 1)
        dim = self.round_up(x.shape[3])
        if dim == x.shape[3]:
            return x.to(self.dtype).contiguous()
        out = x.new_zeros(*x.shape[:3], dim, dtype=self.dtype)
        out[..., : x.shape[3]] = x
        return out

    def images(self, rows: Tensor, channels: int) -> Tensor:
        """(B, H, W, dim) -> (B, channels, H, W), a view."""
        return rows[..., :channels].permute(0, 3, 1, 2)

    def run(self, way: str, parameters: list, statistics: list, gradients: list | None = None, **tensors) -> None:
        """One native call. Of each half four parameters: weight and bias of the convolution and of its BatchNorm."""
        layer = Layer(
            self.batch, self.height, self.width, self.out_dim, self.in_dim, self.kernel, torch.get_num_threads()
        )  # fmt: skip
        gradients = gradients or [None] * len(parameters)
        for i, (half, norm) in enumerate([("depthwise", "norm1"), ("pointwise", "norm2")][-len(statistics) :]):
            here = slice(4 * i, 4 * i + 4)
            (weight, bias, *affine), (d_weight, d_bias, *d_affine) = parameters[here], gradients[here]
            tensors |= {f"{half}_weight": weight, f"{half}_bias": bias}
            tensors |= {f"d_{half}_weight": d_weight, f"d_{half}_bias": d_bias}
            setattr(layer, norm, statistics[i].native(*affine, *d_affine))
        for name, tensor in tensors.items():
            setattr(layer, name, address(tensor))
        getattr(self.native, f"layers_{way}_{self.suffix}")(ctypes.byref(layer))


class HalvesFunction(torch.autograd.Function):
    """x (B, c, H, W) -> BatchNorm(GELU(pointwise(z))): z = BatchNorm(GELU(depthwise(x))) + x, or x in the stem.

    norms: one a half; parameters: see Call.run.
    """

    @staticmethod
    def forward(ctx, x, part, norms, keep, *parameters):
        kernel = parameters[0].shape[-1] if len(norms) == 2 else 0
        call = Call(x.shape, len(parameters[-4]), kernel, part.native_dtype, part.native_arithmetic)
        own = [padded(parameter, call.out_dim) for parameter in parameters]
        own[-4] = padded(parameters[-4].flatten(1), call.out_dim, call.in_dim)
        statistics = [Statistics(norm, call.out_dim) for norm in norms]
        keep = keep or any(each.batch for each in statistics)
        rows, out = call.rows(x), call.empty(call.out_dim)
        y = call.empty(call.out_dim) if keep and kernel else None
        u = call.empty(call.out_dim) if keep else None
        call.run("forward", own, statistics, x=rows, y=y, u=u, out=out)
        for each, norm in zip(statistics, norms, strict=True):
            each.write_back(norm)
        ctx.save_for_backward(rows, y, u, *own)
        ctx.call, ctx.statistics, ctx.weight_shape = call, statistics, parameters[-4].shape
        return call.images(out, call.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        call = ctx.call
        rows, y, u, *own = ctx.saved_tensors
        d_own = [torch.empty_like(parameter) for parameter in own]
        dz = call.empty(call.in_dim) if call.kernel else None
        dx = call.empty(call.in_dim) if call.kernel or ctx.needs_input_grad[0] else None
        call.run("backward", own, ctx.statistics, d_own, x=rows, y=y, u=u, dout=call.rows(d_out), dz=dz, dx=dx)
        d_own = [gradient[: call.outputs] for gradient in d_own]
        d_own[-4] = d_own[-4][:, : call.inputs].reshape(ctx.weight_shape)
        return None if dx is None else call.images(dx, call.inputs), None, None, None, *d_own


class MeanFunction(torch.autograd.Function):
    """x (B, h, H, W) -> its mean over places in float32, (B, h)."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.mean((2, 3), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_mean):
        height, width = ctx.shape[2:]
        each = (d_mean * (1 / (height * width))).to(ctx.dtype)
        return each[:, None, None].expand(-1, height, width, -1).permute(0, 3, 1, 2)  # the last block wants it so


# ------------------------------------------------------------------------------------------------ modules


def usable(x: Tensor, weight: Tensor, norm: nn.BatchNorm2d, stride: int = 1) -> bool:
    """Whether the native code may run on this call; if not, PyTorch's layers do, or refuse it as they always do."""
    height, width = x.shape[-2:]
    return (
        not torch.compiler.is_compiling()
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and x.dtype in DTYPES
        and x.ndim == 4
        and x.shape[1] == weight.shape[1]
        and x.numel() > 0
        and height % stride == width % stride == 0
        and not (norm.training and len(x) * height * width == stride**2)  # one value a channel has no variance
    )


class NativeStem(nn.Sequential):
    """The stem as one native call; parameters and keys as in `ConvMixer.stem`."""

    native_dtype: torch.dtype
    native_arithmetic: str

    def forward(self, x: Tensor) -> Tensor:
        conv, _, norm = self
        if not usable(x, conv.weight, norm, conv.stride[0]):
            return super().forward(x)
        patches = nn.functional.pixel_unshuffle(x, conv.stride[0])  # (B, c p p, n/p, n/p)
        return HalvesFunction.apply(
            patches, self, [norm], torch.is_grad_enabled(), *conv.parameters(), *norm.parameters()
        )


class NativeBlock(nn.Sequential):
    """A mixing block as one native call; parameters and keys as `ConvMixer.block` makes them."""

    native_dtype: torch.dtype
    native_arithmetic: str

    def forward(self, x: Tensor) -> Tensor:
        depthwise, _, norm1 = self[0].fn
        _, pointwise, _, norm2 = self
        if not usable(x, pointwise.weight, norm1):
            return super().forward(x)
        parameters = [p for layer in (depthwise, norm1, pointwise, norm2) for p in layer.parameters()]
        return HalvesFunction.apply(x, self, [norm1, norm2], torch.is_grad_enabled(), *parameters)


class NativeConvMixer(ConvMixer):
    """ConvMixer whose head works in float32 whatever the type of the activations."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in DTYPES:
            return self.head(x.mean((2, 3)))
        return self.head(MeanFunction.apply(x))


def accelerate(model: nn.Module, dtype: torch.dtype = torch.float32, arithmetic: str | None = None) -> str | None:
    """Lets `model` run on the native layers, in place; None, or one line saying why it stays plain.

    `dtype` is that of activations, float32 or bfloat16; parameters, gradients, BatchNorm and logits stay float32.
    `arithmetic` is one of `arithmetics()` for activations in bfloat16; not given, it is `bfloat16_arithmetic()`. Works
    in training and evaluation, with and without gradients; parameters, module names and state-dict keys do not change.
    A call that the native code cannot take (another device, float64, torch.compile) falls back to PyTorch's layers by
    itself.
    """
    reason = obstacle(model, dtype)
    if reason is None:
        if dtype == torch.float32:
            arithmetic = "float32"
        arithmetic = arithmetic or bfloat16_arithmetic()
        model.__class__ = NativeConvMixer
        make_native(model.stem, NativeStem, dtype, arithmetic)
        for block in model.blocks:
            make_native(block, NativeBlock, dtype, arithmetic)
    return reason


def known(part: nn.Sequential) -> bool:
    """Whether this is what layers.c computes: a convolution with a bias, exact GELU, BatchNorm."""
    kinds = [type(layer) for layer in part] == [nn.Conv2d, nn.GELU, nn.BatchNorm2d]
    return kinds and part[0].bias is not None and part[0].dilation == (1, 1) and part[1].approximate == "none"


def make_native(part: nn.Sequential, kind: type, dtype: torch.dtype, arithmetic: str) -> None:
    part.__class__, part.native_dtype, part.native_arithmetic = kind, dtype, arithmetic


def obstacle(model: ConvMixer, dtype: torch.dtype) -> str | None:
    """Why `model` cannot run on the native layers, or None."""
    if dtype not in DTYPES:
        return f"native layers work in float32 or bfloat16, not {dtype}"
    if type(model) not in (ConvMixer, NativeConvMixer):
        return f"native layers are for a ConvMixer, not a {type(model).__name__}"
    if not all(known(part) for part in (model.stem, *(half for b in model.blocks for half in (b[0].fn, b[1:])))):
        return "native layers are for a convolution with a bias, GELU and BatchNorm, as lib/model.py had them"
    devices = {p.device.type for p in model.parameters()}
    if devices != {"cpu"}:
        return f"native layers are for the CPU, the model is on {', '.join(sorted(devices))}"
    if any(p.dtype != torch.float32 for p in model.parameters()):
        return "native layers need float32 parameters"
    if any(conv.kernel_size[0] % 2 == 0 for conv in model.blocks.modules() if isinstance(conv, nn.Conv2d)):
        return "native layers need an odd kernel"
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not all(norm.affine and norm.track_running_stats for norm in norms):
        return "native layers need BatchNorm with weights and running statistics"
    if sys.byteorder != "little":
        return "native layers need a little-endian processor"
    if compiled() is None:
        return "native layers could not be compiled"
    return None


# ------------------------------------------------------------------------------------------------ the arithmetic

MARGIN = 1.1  # how many times as fast dot products must be: float32 is the more exact, and noise must not decide
ROUNDS = 25


def arithmetics() -> tuple[str, ...]:
    """Those that there are here for activations in bfloat16: products of floats, and dot products of bfloat16 pairs."""
    return ("float32", "dot") if hasattr(compiled(), f"layers_forward_{DOT}") else ("float32",)


def bfloat16_arithmetic() -> str:
    """What multiplies activations in bfloat16 in this process: "float32" or "dot".

    The one that $CONVMIXER_BF16 names (ParameterError where it is not there), or the faster one on this processor.
    """
    there, asked = arithmetics(), os.environ.get("CONVMIXER_BF16")
    if asked and asked not in there:
        raise ParameterError(f"CONVMIXER_BF16={asked}: on this processor it can be {' or '.join(there)}")
    return asked or (faster_here() if "dot" in there else "float32")


@functools.cache
def faster_here() -> str:
    """The faster arithmetic on this processor, timed once and kept beside the compiled code."""
    return kept_choice(Path(compiled()._name).with_suffix(".json"), time_a_block)


def kept_choice(path: Path, measure: Callable[[], dict[str, float]]) -> str:
    """The choice in `path`, or that by `measure()`, which is kept there if the folder can be written.

    A run and its repetition must not part because a timing was close. Of two processes that start cold, the first to
    write decides for both.
    """
    choice = read_choice(path)
    if choice is not None:
        return choice
    seconds = measure()
    choice = read_choice(path)
    if choice is None:
        choice = faster(seconds)
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            made.write_text(json.dumps({"bfloat16_arithmetic": choice, "seconds": seconds}) + "\n")
            made.replace(path)
    return choice


def read_choice(path: Path) -> str | None:
    """The choice kept in `path`; None where there is none, or something else."""
    try:
        choice = json.loads(path.read_text())["bfloat16_arithmetic"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice in ("float32", "dot") else None


def faster(seconds: dict[str, float]) -> str:
    return "dot" if seconds["dot"] * MARGIN < seconds["float32"] else "float32"


def time_a_block() -> dict[str, float]:
    """Seconds that a block takes forward and back with each arithmetic; half a second's work in all.

    The sum for kernel 3, where pointwise products are nearly everything, and 9, where the depthwise ones count too.
    All take turns, short and many, and the best of each counts: some are undisturbed on a busy machine as well.
    """
    ways = [(kernel, arithmetic) for kernel in (3, 9) for arithmetic in arithmetics()]
    best = dict.fromkeys(ways, math.inf)
    # Whether this is timed or read from the file must make no difference to the caller's random numbers.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(4, 256, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
        blocks = {(kernel, arithmetic): ConvMixer.block(256, kernel) for kernel, arithmetic in ways}
        for (_, arithmetic), block in blocks.items():
            make_native(block, NativeBlock, torch.bfloat16, arithmetic)
        for _ in range(ROUNDS):
            for way, block in blocks.items():
                begun = time.perf_counter()
                block(x).backward(x)
                best[way] = min(best[way], time.perf_counter() - begun)
    return {arithmetic: best[3, arithmetic] + best[9, arithmetic] for arithmetic in arithmetics()}
