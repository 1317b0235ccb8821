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


class Cut(Structure):
    """`cut` of ends_template.h."""

    _fields_ = (
        *fields(c_int64, "batch", "channels", "height", "width", "patch", "dim", "threads"),
        ("stride", c_int64 * 4),
        *fields(c_void_p, "images", "patches"),
    )


class Places(Structure):
    """`places` of ends_template.h."""

    _fields_ = (*fields(c_int64, "batch", "pixels", "dim", "threads"), *fields(c_void_p, "x", "mean"))


ENTRIES = {"forward": Layer, "backward": Layer, "cut": Cut, "mean": Places, "spread": Places}


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled layers.c, or None."""
    code = compiler.load("layers")
    if code is None:
        return None
    code.layers_lanes.restype = c_int64
    for suffix in (*DTYPES.values(), DOT):
        for entry, argument in ENTRIES.items():
            function = getattr(code, f"layers_{entry}_{suffix}", None)
            if function is not None:  # DOT is not everywhere
                function.argtypes, function.restype = [POINTER(argument)], None
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

    def enter(self, entry: str, argument: Structure) -> None:
        getattr(self.native, f"layers_{entry}_{self.suffix}")(ctypes.byref(argument))

    def run(self, way: str, norm1: Norm, norm2: Norm, **tensors: Tensor | None) -> None:
        layer = Layer(
            self.batch, self.height, self.width, self.out_dim, self.in_dim, self.kernel, torch.get_num_threads()
        )  # fmt: skip
        for name, tensor in tensors.items():
            setattr(layer, name, address(tensor))
        layer.norm1, layer.norm2 = norm1, norm2
        self.enter(way, layer)


class BlockFunction(torch.autograd.Function):
    """x (B, h, H, W) -> BatchNorm(GELU(pointwise(BatchNorm(GELU(depthwise(x))) + x))), the same shape."""

    @staticmethod
    def forward(
        ctx,
        x,
        depthwise_weight,
        depthwise_bias,
        weight1,
        bias1,
        pointwise_weight,
        pointwise_bias,
        weight2,
        bias2,
        block,
        keep,
    ):
        _, norm1 = block[0].fn[1:]
        norm2 = block[3]
        dim = x.shape[1]
        call = Call(x.shape, dim, depthwise_weight.shape[-1], block.native_dtype, block.native_arithmetic)
        full = call.out_dim
        parameters = [
            padded(depthwise_weight, full), padded(depthwise_bias, full), padded(weight1, full), padded(bias1, full),
            padded(pointwise_weight.flatten(1), full, full), padded(pointwise_bias, full),
            padded(weight2, full), padded(bias2, full),
        ]  # fmt: skip
        statistics1, statistics2 = Statistics(norm1, full), Statistics(norm2, full)
        rows = call.rows(x)
        out = call.empty(full)
        keep = keep or statistics1.batch or statistics2.batch
        y, u = (call.empty(full), call.empty(full)) if keep else (None, None)
        call.run(
            "forward", statistics1.native(*parameters[2:4]), statistics2.native(*parameters[6:8]),
            x=rows, y=y, u=u, out=out,
            depthwise_weight=parameters[0], depthwise_bias=parameters[1],
            pointwise_weight=parameters[4], pointwise_bias=parameters[5],
        )  # fmt: skip
        statistics1.write_back(norm1)
        statistics2.write_back(norm2)
        ctx.save_for_backward(rows, y, u, *parameters)
        ctx.call, ctx.statistics = call, (statistics1, statistics2)
        return call.images(out, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        call, (statistics1, statistics2) = ctx.call, ctx.statistics
        rows, y, u, *parameters = ctx.saved_tensors
        d_parameters = [torch.empty_like(p) for p in parameters]
        dx, dz = call.empty(call.in_dim), call.empty(call.in_dim)
        call.run(
            "backward",
            statistics1.native(*parameters[2:4], *d_parameters[2:4]),
            statistics2.native(*parameters[6:8], *d_parameters[6:8]),
            x=rows, y=y, u=u, dout=call.rows(d_out), dz=dz, dx=dx,
            depthwise_weight=parameters[0], depthwise_bias=parameters[1],
            pointwise_weight=parameters[4], pointwise_bias=parameters[5],
            d_depthwise_weight=d_parameters[0], d_depthwise_bias=d_parameters[1],
            d_pointwise_weight=d_parameters[4], d_pointwise_bias=d_parameters[5],
        )  # fmt: skip
        dim = call.outputs
        d_parameters = [d[:dim] for d in d_parameters]
        d_parameters[4] = d_parameters[4][:, :dim, None, None]
        return call.images(dx, dim), *d_parameters, None, None


class StemFunction(torch.autograd.Function):
    """images (B, c, n, n) -> BatchNorm(GELU(p x p convolution with stride p)), (B, h, n/p, n/p)."""

    @staticmethod
    def forward(ctx, x, pointwise_weight, pointwise_bias, weight, bias, stem, keep):
        norm = stem[2]
        b, c, height, width = x.shape
        p = pointwise_weight.shape[-1]
        patched = (b, c * p * p, height // p, width // p)
        call = Call(patched, pointwise_weight.shape[0], 0, stem.native_dtype, stem.native_arithmetic)
        full = call.out_dim
        parameters = [
            padded(pointwise_weight.flatten(1), full, call.in_dim), padded(pointwise_bias, full),
            padded(weight, full), padded(bias, full),
        ]  # fmt: skip
        statistics = Statistics(norm, full)
        ctx.x_dtype = x.dtype
        x = x.detach().float()
        patches, out = call.empty(call.in_dim), call.empty(full)
        cut = Cut(b, c, height // p, width // p, p, call.in_dim, torch.get_num_threads(), x.stride())
        cut.images, cut.patches = address(x), address(patches)
        call.enter("cut", cut)
        u = call.empty(full) if keep or statistics.batch else None
        call.run(
            "forward", Norm(), statistics.native(*parameters[2:]),
            x=patches, u=u, out=out, pointwise_weight=parameters[0], pointwise_bias=parameters[1],
        )  # fmt: skip
        statistics.write_back(norm)
        ctx.save_for_backward(patches, u, *parameters)
        ctx.call, ctx.statistics, ctx.weight_shape = call, statistics, pointwise_weight.shape
        return call.images(out, call.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        call = ctx.call
        patches, u, *parameters = ctx.saved_tensors
        d_parameters = [torch.empty_like(p) for p in parameters]
        d_patches = call.empty(call.in_dim) if ctx.needs_input_grad[0] else None
        call.run(
            "backward", Norm(), ctx.statistics.native(*parameters[2:], *d_parameters[2:]),
            x=patches, u=u, dout=call.rows(d_out), dx=d_patches,
            pointwise_weight=parameters[0], pointwise_bias=parameters[1],
            d_pointwise_weight=d_parameters[0], d_pointwise_bias=d_parameters[1],
        )  # fmt: skip
        d_parameters = [d[: call.outputs] for d in d_parameters]
        d_parameters[0] = d_parameters[0][:, : call.inputs].reshape(ctx.weight_shape)
        if d_patches is None:
            return None, *d_parameters, None, None
        _, c, p, _ = ctx.weight_shape
        dx = d_patches[..., : call.inputs].unflatten(3, (c, p, p)).permute(0, 3, 1, 4, 2, 5)  # (B, c, n/p, p, n/p, p)
        return dx.reshape(call.batch, c, call.height * p, call.width * p).to(ctx.x_dtype), *d_parameters, None, None


class MeanFunction(torch.autograd.Function):
    """x (B, h, H, W) -> its mean over places in float32, (B, h)."""

    @staticmethod
    def forward(ctx, x):
        ctx.call = call = Call(x.shape, x.shape[1], 0, x.dtype)  # there are no products: one arithmetic
        rows = call.rows(x)
        mean = torch.empty(call.batch, call.in_dim)
        call.enter("mean", MeanFunction.places(call, rows, mean))
        return mean[:, : call.inputs]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_mean):
        call = ctx.call
        d_mean = torch.nn.functional.pad(d_mean, (0, call.in_dim - call.inputs)).contiguous()
        dx = call.empty(call.in_dim)
        call.enter("spread", MeanFunction.places(call, dx, d_mean))
        return call.images(dx, call.inputs)

    @staticmethod
    def places(call: Call, x: Tensor, mean: Tensor) -> Places:
        return Places(
            call.batch, call.height * call.width, call.in_dim, torch.get_num_threads(), address(x), address(mean)
        )


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
        return StemFunction.apply(x, conv.weight, conv.bias, norm.weight, norm.bias, self, torch.is_grad_enabled())


class NativeBlock(nn.Sequential):
    """A mixing block as one native call; parameters and keys as `ConvMixer.block` makes them."""

    native_dtype: torch.dtype
    native_arithmetic: str

    def forward(self, x: Tensor) -> Tensor:
        depthwise, _, norm1 = self[0].fn
        _, pointwise, _, norm2 = self
        if not usable(x, pointwise.weight, norm1):
            return super().forward(x)
        return BlockFunction.apply(
            x, depthwise.weight, depthwise.bias, norm1.weight, norm1.bias, pointwise.weight, pointwise.bias,
            norm2.weight, norm2.bias,
            self, torch.is_grad_enabled(),
        )  # fmt: skip


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
