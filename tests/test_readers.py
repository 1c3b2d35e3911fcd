import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gacd.cli import main
from gacd.data import load
from gacd.errors import InputError
from gacd.readers import PUBLIC, download


def publish(monkeypatch, root, name, files):
    """Lays down files as those of a public set, their md5 made the published ones."""
    place, url, md5, _ = PUBLIC[name]
    (root / place).mkdir()
    for file, content in files.items():
        (root / place / file).write_bytes(content)
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(PUBLIC, name, (place, url, md5, sums))
    return root / place


def cifar_files(name):
    """The files of a CIFAR of 20 training images a batch and 10 test images, and all the images in order."""
    rng = np.random.default_rng(0)
    batches = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar10" else ["train"]
    labels, meta, test = (
        ("labels", {"label_names": list("ab")}, "test_batch")
        if name == "cifar10"
        else ("fine_labels", {"fine_label_names": list("ab")}, "test")
    )
    rows = {file: rng.integers(0, 256, (20, 3072), dtype=np.uint8) for file in [*batches, test]}
    files = {f: pickle.dumps({"data": x, labels: [i % 2 for i in range(20)]}, 2) for f, x in rows.items()}
    files["batches.meta" if name == "cifar10" else "meta"] = pickle.dumps(meta, 2)
    return files, np.concatenate([rows[f] for f in batches]), rows[test]


def save_images(root, sizes=(16,), mode="RGB", classes=("cat", "dog"), n=10):
    rng = np.random.default_rng(1)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = (sizes[i % len(sizes)],) * 2 + ((3,) if mode == "RGB" else ())
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_round_trip(name, tmp_path, monkeypatch):
    files, train, test = cifar_files(name)
    place = publish(monkeypatch, tmp_path, name, files)
    data = load(name, data_dir=tmp_path, val_size=0)
    assert np.array_equal(data.train.images.reshape(-1, 3072).numpy(), train)
    assert np.array_equal(data.test.images.reshape(-1, 3072).numpy(), test)
    assert data.train.labels[:4].tolist() == [0, 1, 0, 1]
    assert data.classes == ["a", "b"]
    assert len(data.val) == 0
    monkeypatch.setenv("GACD_DATA", str(place))
    assert torch.equal(load(name, val_size=0).test.images, data.test.images)


def test_cifar_missing_or_damaged_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cifar10 not found.*batches-py/data_batch_1.*gacd download cifar10"):
        load("cifar10", data_dir=tmp_path)
    place = publish(monkeypatch, tmp_path, "cifar10", cifar_files("cifar10")[0])
    damaged = bytearray((place / "data_batch_3").read_bytes())
    damaged[1000] ^= 1
    (place / "data_batch_3").write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged file: .*data_batch_3"):
        load("cifar10", data_dir=tmp_path)


class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.mkdir, eval, np.load, np.frombuffer])
def test_hostile_pickle_is_refused_even_with_the_right_md5(call, tmp_path, monkeypatch):
    files, _, _ = cifar_files("cifar10")
    files["data_batch_1"] = pickle.dumps(Hostile(call, str(tmp_path / "executed")), 2)
    publish(monkeypatch, tmp_path, "cifar10", files)
    with pytest.raises(InputError, match="refused to import"):
        load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_stl10_is_column_major(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    files, images = {}, {}
    for part in ("train", "test"):
        images[part] = rng.integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
        files[f"{part}_X.bin"] = b"".join(column.tobytes() for image in images[part] for column in image.swapaxes(1, 2))
        files[f"{part}_y.bin"] = bytes(range(1, 11)) * 2
    publish(monkeypatch, tmp_path, "stl10", files)
    data = load("stl10", data_dir=tmp_path)
    assert np.array_equal(data.test.images.numpy(), images["test"])
    assert data.test.labels.tolist() == [*range(10)] * 2
    assert (len(data.train), len(data.val), data.augment) == (18, 2, "crop-flip")
    small = load("stl10", data_dir=tmp_path, size=32).test.images
    assert small.shape == (20, 3, 32, 32)
    # A triangle three pixels wide to each side: the mean grey stays, white noise calms down.
    assert (small.float().mean() - data.test.images.float().mean()).abs() < 1
    assert small.float().std() < 0.6 * data.test.images.float().std()


def test_folder_with_all_parts(tmp_path):
    for part, n in (("train", 30), ("val", 3), ("test", 4)):
        save_images(tmp_path / part, n=n)
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("hidden")
    (tmp_path / "train" / ".git").mkdir()
    data = load(str(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [60, 6, 8]
    assert data.classes == ["cat", "dog"]
    assert sorted(data.test.labels.tolist()) == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == load(str(tmp_path)).test.labels.tolist() != [0] * 4 + [1] * 4  # nor by class
    assert data.notes == []
    cats = data.test.images[data.test.labels == 0].permute(0, 2, 3, 1).numpy()
    assert any(np.array_equal(image, np.asarray(Image.open(tmp_path / "test/cat/1.png"))) for image in cats)
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_folder_of_classes_alone_is_split_with_notes(tmp_path, monkeypatch):
    save_images(tmp_path / "mine", mode="L", n=50)
    monkeypatch.chdir(tmp_path)
    data = load("mine")
    assert sum(len(split) for split in (data.train, data.val, data.test)) == 100
    assert 5 <= len(data.test) <= 40
    assert data.channels == 1
    assert f"{len(data.test)} of 100" in data.notes[0]
    assert f"{len(data.val)} of {100 - len(data.test)}" in data.notes[1]


def test_images_split_off_are_the_same_whatever_comes_or_goes(tmp_path):
    """Else a network would be tested on what it was trained on once a file of the folder had gone."""

    def parts(size=None):
        data = load(str(tmp_path), size=size, val_size=0)
        return [{image.numpy().tobytes() for image in split.images} for split in (data.train, data.test)]

    save_images(tmp_path, mode="L", n=50)
    train, test = parts()
    files = sorted(tmp_path.glob("*/*.png"))
    files[0].unlink()
    for i, file in enumerate(files[1::7]):
        file.rename(file.with_name(f"{i}-other.png"))
    for i in range(20):
        Image.fromarray(np.full((16, 16), 5 * i, np.uint8)).save(files[-1].with_name(f"new-{i}.png"))
    now_train, now_test = parts()
    assert not train & now_test and not test & now_train
    assert len((train | test) & (now_train | now_test)) == 99
    assert [len(part) for part in parts(size=16)] == [len(part) for part in (now_train, now_test)]


def test_small_classes_have_images_to_train_on(tmp_path):
    for n in (1, 2, 3, 5):
        save_images(tmp_path / str(n), mode="L", n=n)
        data = load(str(tmp_path / str(n)), val_size=0)
        assert set(data.train.labels.tolist()) == {0, 1}
        assert bool(len(data.test)) == (n > 1)
        assert len(data.train) + len(data.test) == 2 * n


def test_folder_mixing_grey_colour_and_sizes(tmp_path):
    save_images(tmp_path / "train", sizes=(16, 20))
    Image.new("L", (40, 20), 77).save(tmp_path / "train" / "cat" / "grey.jpg")
    with pytest.raises(InputError, match=r"one size: 20 x 20: .*1.png \(--size"):
        load(str(tmp_path))
    data = load(str(tmp_path), size=8, val_size=0)
    assert data.train.images.shape[1:] == (3, 8, 8)
    images = torch.cat([data.train.images, data.test.images])
    assert (images == 77).flatten(1).all(1).sum() == 1


def spoil(root, kind):
    image = root / "train" / "cat" / "a.png"
    if kind == "text":
        image.write_text("not an image")
    elif kind == "truncated":
        image.write_bytes(image.with_name("0.png").read_bytes()[:400])
    elif kind == "deep":
        Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(image)
    elif kind == "bomb":
        Image.new("1", (10_000, 10_000)).save(image)
    elif kind == "wide":
        Image.new("RGB", (16, 17)).save(image)
    elif kind == "empty":
        (root / "train" / "ant").mkdir()
    elif kind == "stranger":
        save_images(root / "val", classes=["yak"])
    elif kind == "alone":
        for file in (root / "train" / "dog").iterdir():
            file.unlink()
        (root / "train" / "dog").rmdir()
    elif kind == "trainless":
        (root / "train").rename(root / "val")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", r"not a readable image.*cat/a\.png"),
        ("truncated", r"not a readable image.*cat/a\.png"),
        ("deep", r"more than 8 bits.*cat/a\.png"),
        ("bomb", r"decompression bomb.*cat/a\.png"),
        ("wide", r"16 x 17.*cat/a\.png"),
        ("empty", "no images.*ant"),
        ("stranger", "yak is not among train's"),
        ("alone", "1 class folders"),
        ("trainless", "no folders train/CLASS or test/CLASS"),
    ],
)
def test_folder_errors(kind, message, tmp_path):
    save_images(tmp_path / "train", n=2)
    spoil(tmp_path, kind)
    with pytest.raises(InputError, match=message) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


def publish_archive(monkeypatch, path, members, md5=None):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    files = {Path(name).name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    md5 = md5 or hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLIC, "cifar100", ("cifar-100-python", path.as_uri(), md5, files))


def test_download_unpacks_what_has_the_right_md5(tmp_path, monkeypatch):
    members = {f"cifar-100-python/{file}": content for file, content in cifar_files("cifar100")[0].items()}
    publish_archive(monkeypatch, tmp_path / "a.tar.gz", members)
    place = download("cifar100", data_dir=tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["cifar-100-python"]
    assert len(load("cifar100", data_dir=tmp_path / "data").train) == 18
    (tmp_path / "a.tar.gz").unlink()
    assert download("cifar100", data_dir=tmp_path / "data") == place
    (place / "meta").write_bytes(b"")
    with pytest.raises(InputError, match=r"damaged file.*meta"):
        download("cifar100", data_dir=tmp_path / "data")


def test_download_errors_leave_nothing(tmp_path, monkeypatch):
    publish_archive(monkeypatch, tmp_path / "a.tar.gz", {"cifar-100-python/meta": b"x"}, md5="0" * 32)
    with pytest.raises(InputError, match="damaged or was replaced"):
        download("cifar100", data_dir=tmp_path / "data")
    publish_archive(monkeypatch, tmp_path / "a.tar.gz", {"../meta": b"x"})
    with pytest.raises(InputError, match=r"download failed.*outside"):
        download("cifar100", data_dir=tmp_path / "data")
    (tmp_path / "a.tar.gz").unlink()
    with pytest.raises(InputError, match="download failed"):
        download("cifar100", data_dir=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "meta").exists()
    with pytest.raises(InputError, match="nothing to download: digits"):
        download("digits", data_dir=tmp_path)


def test_downloads_are_encrypted():
    assert all(url.startswith("https://") for _, url, *_ in PUBLIC.values())


def test_a_test_part_alone_is_for_evaluation(tmp_path, capsys):
    save_images(tmp_path / "test", n=2)
    images = load(str(tmp_path))
    assert (len(images.train), len(images.val), len(images.test)) == (0, 0, 2 * len(images.classes))
    assert any("can only be evaluated on" in note for note in images.notes)
    for command in ("train nfgsm --model resnet8-x0.1", "train standard --model resnet8-x0.1"):
        assert main([*command.split(), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.count("gacd: error: there are no images to train on") == 2
