"""Model files: one .safetensors with the weights in half precision and, as JSON metadata, all that is known of them.

SVMs and ridge regressors keep their single precision: adding a class to a model must leave the others' bit for bit. A checksum
covers weights and metadata. `save_model` writes a file, `load` reads one by path, or a shipped model by name, and files of
earlier versions too. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sppnet import __version__
from sppnet.cache import fingerprint
from sppnet.errors import ModelError, SettingsError
from sppnet.files import MADE_BY, atomic_write, to_json
from sppnet.models.backbones import SHIPPED
from sppnet.models.geometry import Geometry
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model

FORMAT, FIRST_FORMAT = "sppnet/2", "sppnet/1"
LINEAR_HEADS = ("weights", "biases", "scale")  # of SVMs and ridge regressors: these tensors keep their precision
# Of a model, each an object in the metadata.
SETTINGS: dict[str, type[Any]] = {
    "architecture": Architecture,
    "preprocess": Preprocess,
    "detection": DetectionSettings,
    "geometry": Geometry,
}


def save_model(model: SPPNet, path: str | Path) -> None:
    """Write a model file, atomically.

    Args:
        model: any device; floating-point weights are stored in half precision. Single numbers are stored as they are, and so are
            SVMs, ridge regressors, and a tensor with a value that half precision cannot hold (beyond 65504). Its ``record`` is
            what the file says about its training: JSON-ready.
        path: ends in .safetensors; a model file that is there is replaced.

    Raises:
        OutputError: a folder that cannot be written to, or a file that sppnet did not write.
        SettingsError: another ending.
        ModelError: weights that are not finite.
    """
    path = check_model_path(path)
    tensors = {name: _stored(name, value.detach().cpu()).contiguous() for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ModelError(f"{path}: {name} is not finite: training went astray; lower the learning rate")
    metadata = {"format": FORMAT, "made_by": MADE_BY, "training": to_json(model.record)}
    for name in SETTINGS:
        metadata[name] = json.dumps(dataclasses.asdict(getattr(model, name)))
    with atomic_write(path) as unfinished:
        # `save_file` would leave it readable by the owner alone
        unfinished.write_bytes(save(tensors, {**metadata, "checksum": _checksum(tensors, metadata)}))


def check_model_path(path: str | Path) -> Path:
    """The path of a model file to write; a `SettingsError` unless its name ends in .safetensors."""
    if Path(path).suffix != ".safetensors":
        raise SettingsError(f"a model file's name ends in .safetensors: got {path}")
    return Path(path)


def load(model: str | Path, device: str | torch.device = "cpu") -> SPPNet:
    """Load a shipped model by name, or a model file by path.

    Args:
        model: a shipped name (``"voc"``), or the path of a file that `save_model` wrote.
        device: where to put it, such as ``"cuda"``.

    Returns:
        The model in evaluation mode, its convolutions' memory channels last; its ``record`` says how it was trained.

    Raises:
        ModelError: no such name or file, a file that is not a model of this kind, or a damaged one.

    Example:
        >>> load("voc").class_names[:3]
        ('aeroplane', 'bicycle', 'bird')
    """
    path = find_model(model)
    metadata, tensors = _read(path)
    try:
        if metadata["format"] == FIRST_FORMAT:
            described, tensors = _first_format(metadata, tensors)
        else:
            described = {name: json.loads(metadata[name]) for name in SETTINGS}
        architecture = described["architecture"]
        if isinstance(architecture, dict) and architecture.get("backbone_stride") and "proposes" not in architecture:
            raise ValueError("its backbone was cut at a stride, where this version dilates it: train it again")
        settings = {name: _settings(SETTINGS[name], fields) for name, fields in described.items()}
        with torch.device("meta"):  # takes no memory, whatever widths are claimed
            expected = {name: value.shape for name, value in build_model(**settings).state_dict().items()}
        record = json.loads(metadata.get("training", "{}"))
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        found = shorten(str(error), 200, placeholder=" ...")
        reason = f"that this version cannot build ({found}): install what that names, or update sppnet"
        raise ModelError(f"{path} describes a model {reason}") from error
    if expected != {name: value.shape for name, value in tensors.items()}:
        raise ModelError(f"{path} is damaged: its weights do not fit its description; get the file again")
    net = build_model(**settings)
    net.record = record
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ModelError(f"{path} is damaged: some weights are not finite numbers; get the file again, or train anew")
    net.load_state_dict(tensors)
    net.eval().to(device)
    net.backbone.to(memory_format=torch.channels_last)
    return net


def trained_by() -> dict[str, str | None]:
    """What a record of training says of the program: this package's version, and the commit of its source; else None.

    Example:
        >>> sorted(trained_by())
        ['commit', 'sppnet']
    """
    here, commit = Path(__file__), None
    # Of the repository that this file is tracked in: an installed copy may lie inside somebody else's.
    words = ["git", "rev-parse", "HEAD", f":./{here.name}"]
    with suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(words, cwd=here.parent, capture_output=True, text=True, check=True).stdout[:12]
    return {"sppnet": __version__, "commit": commit}


def round_to_stored(module: nn.Module) -> None:
    """Make the weights what a model file will hold of them, so that what is trained next is trained on these.

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


def find_model(model: str | Path) -> Path:
    """The file of a shipped model's name, or of a path; a ModelError where there is none."""
    path = SHIPPED.get(str(model), Path(model))
    if not path.is_file():
        expected = f"one of the shipped names ({', '.join(SHIPPED)}) or the path of a .safetensors file"
        raise ModelError(f"no such model: {model}; expected {expected} made by 'sppnet train'")
    return path


def _stored(name: str, value: Tensor) -> Tensor:
    # A single number keeps its precision: the features' scale may lie outside the range of half precision.
    if not value.is_floating_point() or not value.ndim or name.rpartition(".")[2] in LINEAR_HEADS:
        return value
    half = value.half()
    return half if half.isfinite().all() else value  # twice the bytes, for a tensor with a weight beyond 65504


def _settings(kind: type[Any], fields: Any) -> Any:
    """From what JSON holds; a TypeError where a field is unknown, or of another kind than expected."""
    if not isinstance(fields, dict):
        raise TypeError(f"its {kind.__name__.lower()} is not an object with fields")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints or not _fits(value, hints[name]):
            raise TypeError(f"{name} is {shorten(repr(value), 100, placeholder=' ...')}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a field's type: a word, a number, or a list of these. No number is NaN or infinite."""
    if get_origin(hint) is tuple:
        of, *rest = get_args(hint)
        if not isinstance(value, tuple) or rest not in ([...], [of] * (len(value) - 1)):
            return False
        return all(_fits(each, of) for each in value)
    return type(value) is hint and (hint is not float or math.isfinite(value))


def _first_format(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """What version 1 of the format held, in today's words."""
    old: dict[str, Any] = json.loads(metadata["architecture"])
    for name, usual in (("mapping", "centre"), ("scale_rule", "area")):
        if old.get(name, usual) != usual:
            raise ValueError(f"{name} {old[name]!r} is no longer in the package, but in its benchmarks")
    svm, regression = old.get("classifier") == "svm", old.get("regression", "network")
    if regression == "ridge-pooled":
        raise ValueError("ridge regression on pooled windows is no longer supported: train it with 'sppnet train svm'")
    described: dict[str, dict[str, Any]] = {
        part: {name: old[name] for name in SETTINGS[part].__dataclass_fields__ if name in old}
        for part in ("architecture", "preprocess", "detection")
    }
    described["architecture"] |= {
        "class_names": old["names"],
        "window_classifier": "svm" if svm and old["detects"] else "softmax",
        "box_regressor": regression,
        "unit_length": svm and not old["detects"],
    }
    modes = {"native": "keep-aspect", "squash": "warp", "crop": "crop", "pad": "letterbox"}
    described["preprocess"]["resize_mode"] = modes[old.get("fit", "native")]
    described["detection"]["proposals"] = old.get("proposer", "selective-search")
    renamed = {
        "image_logits": "image_classifier",
        "window_logits": "window_classifier",
        "svms": "window_classifier",
        "shared_deltas": "box_regressor.shared",
        "class_deltas": "box_regressor.per_class",
        "residual_deltas": "box_regressor.residual",
        "ridge": "box_regressor",
    }
    # a file with SVMs, or with ridge regression, also holds what these replaced
    replaced = ("window_logits",) * svm + ("shared_deltas", "class_deltas", "residual_deltas") * (regression == "ridge")
    kept = {name: name.partition(".") for name in tensors if not name.startswith(replaced)}
    return described, {
        f"{renamed.get(part, part)}{dot}{rest}": tensors[name] for name, (part, dot, rest) in kept.items()
    }


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            kind = metadata.get("format", "no format at all")
            if kind not in (FORMAT, FIRST_FORMAT):
                hint = "weights of a backbone alone go to 'sppnet train --weights'"
                raise ModelError(f"{path} is not an sppnet model: its format is {kind!r}, expected {FORMAT!r}; {hint}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        expected = "a .safetensors made by 'sppnet train'"
        raise ModelError(f"{path} is not a model file: expected {expected} ({error})") from error
    if kind == FORMAT and metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise ModelError(f"{path} is damaged: its checksum does not fit its weights and metadata; get the file again")
    if kind == FIRST_FORMAT and path not in SHIPPED.values():
        warnings.warn(f"{path} is of an earlier version, without a checksum: save it again to protect it", stacklevel=3)
    return metadata, tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    parts: list[Any] = [repr(sorted(metadata.items()))]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {list(tensor.shape)} {tensor.dtype}", tensor]
    return fingerprint(parts, size=16)
