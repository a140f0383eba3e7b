"""Folders of class folders: what is read, what is refused and why, and how parts are drawn."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.find import IMAGE_ENDINGS, find_images, list_images
from sppnet.data.formats.folder import evaluation_images, read, read_folder, split_parts, training_images
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import UserError


def touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def made_up(counts: Iterable[int]) -> LabelledImages:
    """As many images of each class as said; no files."""
    labels = np.repeat(np.arange(len(list(counts := list(counts)))), counts).astype(np.int64)
    return LabelledImages(
        tuple(Path(f"{i}.jpg") for i in range(len(labels))), labels, tuple(map(str, range(len(counts))))
    )


# Reading


def test_a_folder_worked_by_hand(tmp_path: Path) -> None:
    touch(tmp_path, ["dog/b.jpg", "dog/a.JPG", "Cat/1.png", "cow/deep/er/x.WebP", "cow/y.tif"])
    images = read_folder(tmp_path)
    assert images.class_names == ("Cat", "cow", "dog")  # as in a dictionary, whatever the case
    assert [str(path.relative_to(tmp_path)) for path in images.paths] == [
        "Cat/1.png", "cow/deep/er/x.WebP", "cow/y.tif", "dog/a.JPG", "dog/b.jpg",
    ]  # fmt: skip
    assert images.labels.tolist() == [0, 1, 1, 2, 2]
    assert images.labels.dtype == np.int64
    assert images.counts().tolist() == [1, 2, 2]
    assert len(images) == 5


def test_every_ending_counts_in_any_case(tmp_path: Path) -> None:
    endings = [e for ending in sorted(IMAGE_ENDINGS) for e in (ending, ending.upper())]
    touch(tmp_path, [f"{name}/{i}{ending}" for name in "ab" for i, ending in enumerate(endings)])
    assert read_folder(tmp_path).counts().tolist() == [len(endings)] * 2


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "b/2.jpg", ".git/x.jpg", "__MACOSX/a/1.jpg", "README.md", ".DS_Store"])
    touch(tmp_path, ["a/.1.jpg", "a/._2.jpg", "a/.cache/3.jpg", "a/@eaDir/4.jpg", "a/notes.txt", "a/5", "b/6.jpg.part"])
    images = read_folder(tmp_path)
    assert images.class_names == ("a", "b")
    assert [path.name for path in images.paths] == ["1.jpg", "2.jpg"]


def test_unicode_spaces_and_signs_in_names(tmp_path: Path) -> None:
    names = ("black cat", "naïve [1]", "собака", "猫")
    touch(tmp_path, [f"{name}/фото № 1*.jpg" for name in names])
    images = read_folder(tmp_path)
    assert images.class_names == names
    assert all(path.is_file() for path in images.paths)


def test_names_are_composed_however_the_disk_spells_them(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    touch(tmp_path, [f"{decomposed}/1.jpg", "tea/2.jpg"])
    assert read_folder(tmp_path).class_names == (composed, "tea")
    assert read_folder(tmp_path, class_names=["tea", composed]).labels.tolist() == [0, 1]
    touch(tmp_path, [f"{composed}/3.jpg"])
    with pytest.raises(UserError, match="two folders are called 'café'"):
        read_folder(tmp_path)


def test_classes_give_the_labels_their_order(tmp_path: Path) -> None:
    touch(tmp_path, ["cat/1.jpg", "dog/2.jpg"])
    images = read_folder(tmp_path, class_names=["dog", "unicorn", "cat"])
    assert images.class_names == ("dog", "unicorn", "cat")
    assert images.labels.tolist() == [0, 2]
    assert [path.parent.name for path in images.paths] == ["dog", "cat"]
    assert images.counts().tolist() == [1, 0, 1]
    with pytest.raises(UserError, match=r"dog: a class folder that is not expected; the classes are 'cat', 'cow'"):
        read_folder(tmp_path, class_names=["cat", "cow"])
    with pytest.raises(ValueError, match="to be different"):
        read_folder(tmp_path, class_names=["cat", "dog", "cat"])


def test_one_class_will_do_where_the_classes_are_known(tmp_path: Path) -> None:
    touch(tmp_path, ["cat/1.jpg"])
    assert read_folder(tmp_path, class_names=["cat", "dog"]).labels.tolist() == [0]


def test_links_are_followed_each_once(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", ["one/1.jpg", "two/2.jpg"])
    root = touch(tmp_path / "photos", ["dog/own.jpg"])
    (root / "cat").symlink_to(store / "one", target_is_directory=True)
    (root / "dog/linked.jpg").symlink_to(store / "two/2.jpg")
    (root / "dog/more").symlink_to(store / "two", target_is_directory=True)
    (root / "dog/again").symlink_to(store / "two", target_is_directory=True)
    (root / "dog/itself").symlink_to(root / "dog", target_is_directory=True)
    (root / "dog/up").symlink_to(root, target_is_directory=True)
    (root / "dog/nowhere.jpg").symlink_to(store / "gone.jpg")  # listed: a missing picture is named when it is read
    (root / "dog/round").symlink_to(root / "dog/round")
    images = read_folder(root)
    assert images.class_names == ("cat", "dog")
    assert [str(path.relative_to(root)) for path in images.paths] == [
        "cat/1.jpg", "dog/again/2.jpg", "dog/linked.jpg", "dog/nowhere.jpg", "dog/own.jpg",
    ]  # fmt: skip


def test_the_same_images_as_the_other_commands_find(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "a/b/2.PNG", "a/.hidden.jpg", "a/.c/3.jpg", "a/x.txt", "z/4.webp"])
    assert sorted(list_images(tmp_path).images) == find_images([tmp_path])


# Refusing


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "no class folder; expected one folder for each class, such as {root}/cat/1.jpg and {root}/dog/2.jpg"),
        (["1.jpg", "2.jpg"], "2 images lie here, but no class folder; expected one folder for each class"),
        (["notes.txt"], "no class folder; expected one folder for each class"),
        (["cat/1.jpg"], "one class only, 'cat'; a classifier needs at least two"),
        (["cat/1.jpg", "dog/2.jpg", "3.jpg"], "1 image lies beside the folders (3.jpg); move each into the folder"),
        (["cat/1.jpg", "dog/2.jpg", "cow/x.txt"], "/cow: no images in this class folder; add images"),
        (
            ["cat/1.jpg", "dog/x", "cow/.2.jpg"],
            "/cow: no images in this class folder; add images, or move it away (and 1 more: `sppnet check` names each)",
        ),
    ],
)
def test_what_is_missing_is_named_in_one_line(tmp_path: Path, files: list[str], says: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(UserError, match=re.escape(says.format(root=tmp_path))) as caught:
        read_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_no_folder_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected a folder of images"):
        read_folder(tmp_path / "nowhere")
    touch(tmp_path, ["a.jpg"])
    with pytest.raises(UserError, match=r"a\.jpg: this is a file"):
        training_images(tmp_path / "a.jpg")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["a/1.jpg", "b/locked/2.jpg"])
    real = os.scandir

    def locked(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"locked: cannot be listed: Permission denied"):
        read_folder(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_class_name_that_is_not_text(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    touch(tmp_path, ["tea/1.jpg"])
    with pytest.raises(UserError, match=r"is not valid UTF-8; rename the folder"):
        read_folder(tmp_path)


# Folders that are split


@pytest.mark.parametrize("part", ["val", "valid", "validation", "Val"])
def test_a_folder_that_is_split(tmp_path: Path, part: str) -> None:
    touch(tmp_path, ["train/dog/1.jpg", "train/cat/2.jpg", "train/cat/3.jpg", f"{part}/cat/4.jpg", f"{part}/dog/5.jpg"])
    train, validation = training_images(tmp_path)
    assert validation is not None
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1]
    assert [path.name for path in validation.paths] == ["4.jpg", "5.jpg"]


def test_val_comes_before_test_and_other_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, [f"{part}/{name}/1.jpg" for part in ("train", "val", "test") for name in "ab"])
    touch(tmp_path, ["annotations/a.json", "README.md"])
    _, validation = training_images(tmp_path)
    assert validation is not None
    assert {path.parent.parent.name for path in validation.paths} == {"val"}
    assert list(split_parts(tmp_path)) == ["train", "val", "test"]


def test_a_folder_that_is_not_split(tmp_path: Path) -> None:
    touch(tmp_path, ["bus/1.jpg", "train/2.jpg", "ship/3.jpg"])  # trains, among other vehicles
    train, validation = training_images(tmp_path)
    assert train.class_names == ("bus", "ship", "train")
    assert validation is None


def test_a_training_part_alone(tmp_path: Path) -> None:
    touch(tmp_path, ["train/a/1.jpg", "train/b/2.jpg"])
    train, validation = training_images(tmp_path)
    assert train.class_names == ("a", "b")
    assert validation is None


def test_differing_classes_are_named(tmp_path: Path) -> None:
    touch(tmp_path, ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dgo/4.jpg"])
    with pytest.raises(
        UserError, match=r"val: expected the same classes as in .*only in train: 'dog'; only in val: 'dgo'"
    ):
        training_images(tmp_path)
    touch(tmp_path, ["train/dgo/5.jpg"])
    with pytest.raises(UserError, match=r"only in train: 'dog'; or give .*train alone"):
        training_images(tmp_path)


def test_a_test_folder_without_classes_is_not_overlooked(tmp_path: Path) -> None:
    touch(tmp_path, ["train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg"])
    with pytest.raises(UserError, match=r"test: 1 image lies here, but no class folder; .* or give .*train alone"):
        training_images(tmp_path)
    (tmp_path / "test/3.jpg").rename(tmp_path / "3.jpg")
    with pytest.raises(UserError, match=r"1 image lies beside the folders \(3\.jpg\)"):
        training_images(tmp_path)


def test_what_training_and_evaluation_take(tmp_path: Path) -> None:
    """Images called "test" choose nothing in training; a part is asked for by its name."""
    touch(tmp_path, [f"{part}/{name}/1.jpg" for part in ("train", "Test") for name in "ab"])
    train, validation = training_images(tmp_path)
    assert (len(train), validation) == (2, None)
    test = evaluation_images(tmp_path, "test", ["b", "a"])
    assert [path.parts[-3] for path in test.paths] == ["Test"] * 2
    assert (test.class_names, test.labels.tolist()) == (("b", "a"), [0, 1])
    with pytest.raises(UserError, match="no split 'val', but train and test: give --split test"):
        evaluation_images(tmp_path, "val", ["a", "b"])
    assert len(evaluation_images(tmp_path / "train", "val", ["a", "b"])) == 2  # not split: all of it
    (tmp_path / "Test").rename(tmp_path / "val")
    assert training_images(tmp_path)[1] is not None


# Drawing parts


def test_the_form_is_checked() -> None:
    paths = (Path("a.jpg"), Path("b.jpg"))
    for labels in (np.array([0]), np.array([0.0, 1.0]), np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="LabelledImages: expected labels"):
            LabelledImages(paths, labels, ("a", "b"))


def test_subsets() -> None:
    images = made_up([2, 3])
    assert [path.name for path in images.subset([4, 0, 4]).paths] == ["4.jpg", "0.jpg", "4.jpg"]
    assert images.subset([4, 0]).labels.tolist() == [1, 0]
    assert len(images.subset([])) == 0
    assert images.subset([]).class_names == images.class_names
    for wrong in ([5], [-1], [0.5], [[0]], [True, False]):
        with pytest.raises(ValueError, match="subset"):
            images.subset(wrong)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=5),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(0, 2**32),
)
def test_every_image_is_in_one_part_and_every_class_in_both(counts: list[int], share: float, seed: int) -> None:
    images = made_up(counts)
    train, validation = split_off(images, share, seed=seed)
    assert sorted(train.paths + validation.paths) == sorted(images.paths)
    assert train.class_names == validation.class_names == images.class_names
    for n, kept, drawn in zip(counts, train.counts(), validation.counts(), strict=True):
        assert kept + drawn == n
        if n >= 2:
            assert min(kept, drawn) >= 1
            assert abs(drawn - share * n) <= 1
        else:
            assert drawn == 0
    again = split_off(images, share, seed=seed)
    assert again[1].paths == validation.paths


def test_other_seeds_draw_others() -> None:
    images = made_up([50, 50])
    assert len({split_off(images, seed=seed)[1].paths for seed in range(5)}) == 5
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            split_off(images, share, seed=0)
    with pytest.raises(ValueError, match="seed"):
        split_off(images, seed=-1)


def test_a_new_class_leaves_the_parts_of_the_others_as_they_were(tmp_path: Path) -> None:
    touch(tmp_path, [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20)])
    before = split_off(read_folder(tmp_path), seed=3)[1]
    touch(tmp_path, [f"cow/{i}.jpg" for i in range(7)])
    after = split_off(read_folder(tmp_path), seed=3)[1]
    assert [path for path in after.paths if path.parent.name != "cow"] == list(before.paths)


@pytest.mark.slow
def test_the_real_caltech_101(shared_data: Path) -> None:
    train, test = (read(shared_data / "caltech101", part) for part in ("train", "test"))
    assert len(train.class_names) == 102
    assert train.class_names[0] == "accordion"
    assert set(train.counts()) == {30}
    assert test.counts().min() >= 1
