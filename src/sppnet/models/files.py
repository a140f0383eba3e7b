"""Model files: one .safetensors with the weights in half precision and, as JSON metadata, all that is known of them.

The SVMs and box regressors of `sppnet.models.sppnet.LinearOutputs` keep their single precision: adding a class to a model
must leave the others' bit for bit.

`save_model` writes one, `load` reads one by path or a shipped model by name. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.whole_file import whole_file

SHIPPED = {"voc": Path(__file__).with_name("voc.safetensors")}
FORMAT = "sppnet/1"
WHOLE = ("svms.", "ridge.")  # tensors of these modules keep their precision


def save_model(model: SPPNet, path: str | Path, training: dict[str, Any]) -> None:
    """Write a model file, atomically.

    Args:
        model: any device; floating-point weights are stored in half precision. Single numbers are stored as they are,
            and so are SVMs, box regressors, and a tensor with a value that half precision cannot hold (beyond 65504).
        path: ends in .safetensors.
        training: how it was trained: data, commit, seed, settings, figures. JSON-ready.

    Raises:
        UserError: another ending, or a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"a model file's name ends in .safetensors: got {path}")
    tensors = {name: _stored(name, value.detach().cpu()).contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(dataclasses.asdict(model.architecture)),
        "training": json.dumps(training),
    }
    with whole_file(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata))  # `save_file` would leave it readable by the owner alone


def load(model: str | Path, device: str | torch.device = "cpu") -> SPPNet:
    """Load a shipped model by name, or a model file by path.

    Args:
        model: a shipped name (``"voc"``), or the path of a file that `save_model` wrote.
        device: where to put it, such as ``"cuda"``.

    Returns:
        The model in evaluation mode, its convolutions' memory channels last.

    Raises:
        UserError: no such name or file, or a file that is not a model of this kind.

    Example:
        >>> load("voc").architecture.names[:3]
        ('aeroplane', 'bicycle', 'bird')
    """
    path = find_model(model)
    metadata, tensors = _read(path)
    try:
        net = SPPNet(_architecture(json.loads(metadata["architecture"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} describes a model that this version cannot build ({error}): install what that names, or update sppnet"
        ) from error
    try:
        net.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
        )
    except RuntimeError as error:
        raise UserError(f"{path} is damaged: its weights do not fit its own description; get the file again") from error
    net.eval().to(device)
    net.backbone.to(memory_format=torch.channels_last)
    return net


def training_record(model: str | Path) -> dict[str, Any]:
    """How a model was trained, as `save_model` was told; the model is named or found as by `load`."""
    record: dict[str, Any] = json.loads(_read_metadata(find_model(model)).get("training", "{}"))
    return record


def round_to_stored(module: nn.Module) -> None:
    """Make the weights what a model file will hold of them, so that what is learned next is learned on these.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> _ = layer.weight.data.fill_(1 / 3)
        >>> round_to_stored(layer)
        >>> float(layer.weight.detach())
        0.333251953125
    """
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(_stored(name, value))


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    # A single number keeps its precision: the features' scale may lie outside the range of half precision.
    if not value.is_floating_point() or not value.ndim or name.startswith(WHOLE):
        return value
    half = value.half()
    return half if half.isfinite().all() else value  # twice the bytes, for a tensor with a weight beyond 65504


def find_model(model: str | Path) -> Path:
    """The file of a shipped model's name, or of a path; a UserError where there is none."""
    path = SHIPPED.get(str(model), Path(model))
    if not path.is_file():
        raise UserError(
            f"no such model: {model}; expected one of the shipped names ({', '.join(SHIPPED)}) "
            "or the path of a .safetensors file made by 'sppnet train'"
        )
    return path


def _architecture(fields: Any) -> Architecture:
    """From what JSON holds; a TypeError where a field is missing, unknown, or of another kind than expected."""
    if not isinstance(fields, dict):
        raise TypeError("its description is not an object with fields")
    example = Architecture(names=("",))
    known = {field.name: getattr(example, field.name) for field in dataclasses.fields(Architecture)}
    values: dict[str, Any] = {}
    for name, value in fields.items():
        value = tuple(value) if isinstance(value, list) else value
        if name in known and type(value) is not type(known[name]):
            raise TypeError(f"{name} is {value!r}")
        values[name] = value
    return Architecture(**values)


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a model file: expected a .safetensors made by 'sppnet train' ({error})"
        ) from error
    if metadata.get("format") != FORMAT:
        kind = metadata.get("format", "no format at all")
        raise UserError(f"{path} is not an sppnet model: its metadata names {kind!r}, expected {FORMAT!r}; "
                        "weights of a backbone alone go to 'sppnet train --weights'")  # fmt: skip
    return metadata


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    metadata = _read_metadata(path)
    with safe_open(path, framework="pt") as file:
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
