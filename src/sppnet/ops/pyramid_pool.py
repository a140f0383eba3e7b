"""The public pooling functions: check, choose an implementation, call it.

features [N, C, H, W] -> [N, M, C], and with windows [R, 5] -> [R, M, C]; M = sum of n * n over the levels. The only file
that knows every implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from sppnet.ops import _export, _operator, _torch
from sppnet.ops.bins import check_levels, check_windows, whole_windows

IMPLEMENTATIONS = ("auto", "reference", "torch", "numba", "triton", "export")
HAS_TRITON = find_spec("triton") is not None  # it comes with PyTorch's builds for CUDA on Linux
OLDEST_GPU = (7, 5)  # compute capability: what the kernels are compiled for in the tests


def pyramid_pool(
    features: Tensor, levels: Sequence[int], *, reduce: str = "max", implementation: str = "auto"
) -> Tensor:
    """Pool feature maps of any size into vectors of one fixed length.

    Level n lays an n x n grid over the map and keeps, for every channel, the largest response in each bin, or the mean.
    Bin (i, j), counted from 0, covers rows ``i*H // n`` up to, not including, ``ceil((i+1)*H / n)``, and columns
    likewise. Neighbouring bins may share a row or column; no bin is ever empty, even when H < n.

    Args:
        features: [N, C, H, W], floating point; H and W in feature cells, both at least 1; N may be 0. Not modified.
        levels: bins per side of each grid, each at least 1, such as ``(6, 3, 2, 1)``. The result keeps this order.
        reduce: ``"max"``, as in the paper, or ``"mean"``.
        implementation: see `region_pyramid_pool`.

    Returns:
        [N, M, C] with M = sum(n * n for n in levels), in the dtype and on the device of ``features``; bins of a
        level in row order. M and C do not depend on H or W.

    Raises:
        ValueError: not four-dimensional, no cells, no levels, or a level below 1. The message shows which.
        TypeError: not a tensor, or not floating point.

    Gradient: each bin's goes to its first largest cell in row order, or in equal shares to the cells of a mean; a cell
    of several bins gets the sum. The same from run to run. NaN in a bin gives NaN.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 2.2 and appendix A. The authors' C++ starts every maximum at
    0, so it differs where a whole bin is negative, which cannot happen after a ReLU.

    Example:
        >>> pyramid_pool(torch.rand(2, 256, 13, 17), levels=(6, 3, 2, 1)).shape
        torch.Size([2, 50, 256])
    """
    if has_torch_function((features,)):  # torch.fx and tensor subclasses see one call
        settings = {"reduce": reduce, "implementation": implementation}
        return handle_torch_function(pyramid_pool, (features,), features, levels, **settings)
    _check(features, reduce)
    levels = check_levels(levels)
    chosen = _implementation(implementation, features)
    if chosen in ("torch", "export"):
        return (_torch if chosen == "torch" else _export).pyramid_pool(features, levels, reduce)
    if chosen == "reference":
        return _torch.definition(features, whole_windows(features), levels, reduce)
    return _compiled(features, None, levels, reduce)


def region_pyramid_pool(
    features: Tensor, windows: Tensor, levels: Sequence[int], *, reduce: str = "max", implementation: str = "auto"
) -> Tensor:
    """Pool many windows of feature maps, each into a vector of the same fixed length.

    Window r is treated as a map of its own: the result equals `pyramid_pool` of the crop
    ``features[n, :, y0:y1, x0:x1]``.

    Args:
        features: [N, C, H, W], floating point, in cells. Not modified. Channels-last memory is fastest on the CPU.
        windows: [R, 5] int64: map index n, x0, y0, x1, y1 in cells, half-open, 0 <= x0 < x1 <= W, 0 <= y0 < y1 <= H.
            R may be 0.
        levels: bins per side of each grid, each at least 1.
        reduce: ``"max"``, as in the paper, or ``"mean"``.
        implementation: ``"auto"`` takes the fastest: ``"numba"`` on the CPU, ``"triton"`` on CUDA, ``"torch"`` on other
            devices and under `torch.func` or forward-mode derivatives, and ``"export"``, made of operations that ONNX
            has, during an export to ONNX; ``"reference"`` is the definition. All give the same bits for maxima, and
            means that differ by rounding alone.

    Returns:
        [R, M, C] with M = sum(n * n for n in levels), in the dtype and on the device of ``features``.

    Raises:
        ValueError: wrong shapes or levels, a window that is empty or outside its map (the message shows the first), or
            an implementation that does not exist or does not take these features.
        TypeError: features not floating point, windows not int64, or either not a tensor.

    Gradient: each bin's goes to its first largest cell in row order, or in equal shares to the cells of a mean;
    overlapping windows add up. The same from run to run, except by ``"torch"`` on CUDA. NaN in a bin gives NaN.

    Source: arXiv:1406.4729, section 4 and appendix A. The paper takes maxima only.

    Example:
        >>> features = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> windows = torch.tensor([[0, 0, 0, 4, 3], [0, 1, 0, 2, 2]])
        >>> region_pyramid_pool(features, windows, levels=(1,)).flatten()
        tensor([11.,  5.])
    """
    if has_torch_function((features, windows)):
        settings = {"reduce": reduce, "implementation": implementation}
        return handle_torch_function(region_pyramid_pool, (features, windows), features, windows, levels, **settings)
    _check(features, reduce)
    levels = check_levels(levels)
    if not isinstance(windows, Tensor):
        raise TypeError(f"windows must be a tensor [R, 5] int64: got {type(windows).__name__}")
    if windows.ndim != 2 or windows.shape[1] != 5:
        raise ValueError(f"windows must be [R, 5] (map, x0, y0, x1, y1): got shape {list(windows.shape)}")
    if windows.dtype != torch.int64:
        raise TypeError(f"windows must be int64, in cells: got {windows.dtype}; see boxes_to_windows")
    if windows.device != features.device:
        raise ValueError(f"windows must be on the device of the features, {features.device}: got {windows.device}")
    if _is_transformed() and torch._C._functorch.is_batchedtensor(windows):
        raise ValueError("windows must be the same for all that torch.vmap maps over: got a batch of them")
    chosen = _implementation(implementation, features)
    if chosen == "export":
        return _export.region_pyramid_pool(features, windows, levels, reduce)
    if chosen in ("torch", "reference"):
        check_windows(windows, features)
        pool = _torch.region_pyramid_pool if chosen == "torch" else _torch.definition
        return pool(features, windows, levels, reduce)
    return _compiled(features, windows, levels, reduce)


def choose(device: str, dtype: torch.dtype, *, to_onnx: bool, has_triton: bool) -> str:
    """The implementation that ``"auto"`` stands for.

    Args:
        device: its type, such as ``"cpu"``.
        dtype: of the features.
        to_onnx: whether a model is being exported to ONNX, which knows nothing of this project's operator.
        has_triton: whether Triton is installed (it comes with PyTorch's builds for CUDA on Linux) and compiles for the
            device.

    Example:
        >>> choose("cpu", torch.float32, to_onnx=False, has_triton=False)
        'numba'
    """
    if to_onnx:
        return "export"
    if dtype in _operator.INTEGERS:
        if device == "cpu":
            return "numba"
        if device == "cuda" and has_triton:
            return "triton"
    return "torch"


def _implementation(name: str, features: Tensor) -> str:
    device, dtype = features.device.type, features.dtype
    if name == "auto":
        has_triton = HAS_TRITON and device == "cuda" and torch.cuda.get_device_capability(features.device) >= OLDEST_GPU
        if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
            raise ValueError("pyramid pooling needs the newer ONNX exporter: pass dynamo=True to torch.onnx.export")
        to_onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
        chosen = choose(device, dtype, to_onnx=to_onnx, has_triton=has_triton)
        return "torch" if chosen in ("numba", "triton") and _is_transformed() else chosen
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}: got {name!r}")
    if name == "triton" and not HAS_TRITON:
        raise ValueError("implementation 'triton' needs Triton, which is not installed: use 'torch'")
    takes = {"numba": "cpu", "triton": "cuda"}
    if name in takes and (device != takes[name] or dtype not in _operator.INTEGERS):
        expected = f"{takes[name].upper()} maps of 16, 32 or 64 bit floats"
        raise ValueError(f"implementation {name!r} takes {expected}: got {dtype} on {device}; use 'torch'")
    if name in takes and _is_transformed():
        raise ValueError(f"implementation {name!r} works neither under torch.func nor in forward mode: use 'torch'")
    return name


def _compiled(features: Tensor, windows: Tensor | None, levels: tuple[int, ...], reduce: str) -> Tensor:
    wants_gradient = features.requires_grad and torch.is_grad_enabled()
    pool = _operator.region_pyramid_pool if wants_gradient or _is_traced(features) else _operator.forward
    result: tuple[Tensor, Tensor] = pool(features, windows, levels, reduce, wants_gradient)
    return result[0]


def _is_transformed() -> bool:
    """Whether `torch.func` (grad, jvp, vmap) or forward-mode differentiation is at work."""
    inside = torch._C._functorch
    # Written so that `torch.compile` can follow it, which does not know the first function's None.
    return isinstance(inside.peek_interpreter_stack(), inside.CInterpreter) or forward_ad._current_level >= 0


def _is_traced(features: Tensor) -> bool:
    """Whether somebody records operators, or needs them: `torch.compile`, `torch.export`, fake tensors, counters."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or type(features) not in (Tensor, torch.nn.Parameter)
    )


def _check(features: Tensor, reduce: str) -> None:
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a tensor [N, C, H, W]: got {type(features).__name__}")
    if features.ndim != 4:
        raise ValueError(f"features must be [N, C, H, W]: got shape {list(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point: got {features.dtype}; convert with .float()")
    if any(side == 0 for side in features.shape[1:]):
        raise ValueError(f"features must have at least one channel, row and column: got {list(features.shape)}")
    if reduce not in ("max", "mean"):
        raise ValueError(f"reduce must be 'max' or 'mean': got {reduce!r}")
