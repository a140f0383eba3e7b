"""Files of proposals: what goes in comes out, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sppnet.errors import UserError
from sppnet.proposals.files import load_proposals, proposals_path, save_proposals

BOXES = np.array([[0, 0, 10, 20], [1.5, 2, 3, 4]], dtype=np.float32)


@pytest.mark.parametrize("boxes", [BOXES, BOXES[:0], BOXES.astype(np.float64)])
def test_round_trip(tmp_path: Path, boxes: np.ndarray) -> None:
    path = tmp_path / "deep" / "a.npz"
    made_by = {"method": "grid", "step": 1 / 3, "aspects": [0.5, 1.0], "name": "ü"}
    save_proposals(path, boxes, made_by)
    loaded, said = load_proposals(path)
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, boxes)
    assert said == made_by
    assert os.listdir(path.parent) == ["a.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    save_proposals(path, BOXES, {"n": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(UserError, match="No space left"):
        save_proposals(path, BOXES[:1], {"n": 2})
    assert load_proposals(path)[1] == {"n": 1}
    assert os.listdir(tmp_path) == ["a.npz"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_proposals(path, BOXES, {})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npz: not a file of proposals, or damaged; delete it"):
            load_proposals(path)
    np.savez(path, other=BOXES)
    with pytest.raises(UserError, match="not a file of proposals"):
        load_proposals(path)
    np.savez(path, boxes=BOXES[:, :3], made_by=np.array("{}"))
    with pytest.raises(UserError, match=r"\(2, 3\)"):
        load_proposals(path)
    with pytest.raises(UserError, match="no such file"):
        load_proposals(tmp_path / "b.npz")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", boxes=np.array([{}], dtype=object), made_by=np.array("{}"))
    with pytest.raises(UserError, match="not a file of proposals"):
        load_proposals(tmp_path / "a.npz")


def test_ids_stay_in_the_folder(tmp_path: Path) -> None:
    assert proposals_path(tmp_path, "a/b.c") == tmp_path / "a" / "b.c.npz"
    for image_id in ("", "../a", "a/../../b", "/etc/a", "."):
        with pytest.raises(UserError, match="cannot name a file"):
            proposals_path(tmp_path, image_id)
