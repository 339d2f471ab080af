"""Image sources: against torchvision pixel for pixel, and on real, broken and absent files."""

import io
import pickle
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.data import ImageNet, batches, count, files, photos, read_images
from jaxcircuits.data.blocks import image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.jobs import plan
from jaxcircuits.options import Options
from tests.torchvision_oracle import torchvision

SMALL = SimpleNamespace(input_size=32, resize_size=40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(images) -> np.ndarray:
    return np.concatenate([*images.uint8()])


def refused(source, *words: str, **options) -> None:
    """`read_images` says no in one sentence that has these words."""
    with pytest.raises(InputError) as caught:
        read_images(source, SMALL, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures in odd places, of odd sizes and modes, among files that are none of our business."""
    for name, picture in {
        "b/two.JPG": noise(50, 70, 1),
        "b/one.png": noise(33, 41, 2).convert("L"),
        "a.webp": noise(64, 48, 3),
        "b/c/deep.TIFF": noise(40, 40, 4),
        "B.gif": noise(80, 37, 5).convert("P"),
        "z.ppm": noise(31, 90, 6),
        "b.bmp": noise(45, 45, 7),
        ".hidden.png": noise(9, 9),
        ".cache/thumbnail.png": noise(9, 9),
    }.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (tmp_path / "set" / "labels.txt").write_text("not a picture, and not called one")
    return tmp_path / "set"


SORTED = ("B.gif", "a.webp", "b.bmp", "b/c/deep.TIFF", "b/one.png", "b/two.JPG", "z.ppm")

side = st.integers(1, 150)


@settings(max_examples=300, deadline=None)
@given(
    width=side, height=side, size=st.integers(1, 60), shorter=st.integers(1, 60), seed=st.integers(0, 9),
    how=st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_crop_is_torchvisions(width, height, size, shorter, seed, how):
    transforms = torchvision().transforms
    picture, mode = noise(width, height, seed), transforms.InterpolationMode(how)
    expected = transforms.CenterCrop(size)(transforms.Resize(shorter, mode)(picture))
    np.testing.assert_array_equal(files.fitted(picture, size, shorter, "crop", how), np.asarray(expected))
    expected = transforms.Resize((size, size), mode)(picture)
    np.testing.assert_array_equal(files.fitted(picture, size, shorter, "squash", how), np.asarray(expected))


def test_grey_of_more_bits(tmp_path):
    """16 are read, of whatever values; of 32 nobody can say what is white."""
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.tiff")
    first, second = pixels(read_images(tmp_path, SMALL, resize="squash"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[..., 0], np.round(grey / 257))
    Image.fromarray((grey // 256).astype(np.int32)).save(tmp_path / "b.tiff")
    refused(tmp_path / "b.tiff", "32 bits")


def test_models_of_grey_images_take_arrays(tmp_path):
    noise(32, 32).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="pictures have 3 channels, the model's images 1"):
        read_images(tmp_path, SimpleNamespace(**(vars(SMALL) | {"mean": (0.5,), "std": (0.5,)}), channels=1))


def test_models_say_how_pictures_are_resized(tmp_path):
    noise(90, 70).save(tmp_path / "a.png")
    model = SimpleNamespace(**vars(SMALL), interpolation="bicubic")
    (block,) = read_images(tmp_path, model).uint8()
    np.testing.assert_array_equal(block[0], files.fitted(noise(90, 70), 32, 40, "crop", "bicubic"))
    assert (block[0] != files.fitted(noise(90, 70), 32, 40, "crop")).any()
    model.interpolation = "nearest"
    with pytest.raises(InputError, match="unknown interpolation 'nearest'; expected one of bilinear, bicubic"):
        read_images(tmp_path, model)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_photographs_arrive_as_from_torchvision(tmp_path, resize):
    transforms, loader = torchvision().transforms, torchvision().datasets.folder.default_loader
    names = ("chelsea.png", "china.jpg", "retina.jpg")
    for name in names:
        (tmp_path / name).write_bytes(photos._shipped(name).read_bytes())
    cropped = [transforms.Resize(256), transforms.CenterCrop(224)]
    sized = cropped if resize == "crop" else [transforms.Resize((224, 224))]
    normalised = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = transforms.Compose([*sized, transforms.ToTensor(), normalised])
    [block] = read_images(tmp_path, resize=resize)
    assert block.dtype == np.float32 and block.shape == (3, 224, 224, 3)
    for image, name in zip(block, names, strict=True):
        expected = transform(loader(str(tmp_path / name))).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(image, expected)


def test_grey_of_16_bits_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "b.tif")
    Image.fromarray(np.round(ramp / 257).astype(np.uint8)).save(tmp_path / "c.png")
    for block in read_images(tmp_path, ImageNet(64, 64)).uint8():
        assert block.shape == (3, 64, 64, 3)
        np.testing.assert_allclose(block[:2].astype(int), np.stack([block[2]] * 2), atol=1)


def test_grey_without_a_range_is_left_out(tmp_path):
    noise(40, 40).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "b.tif")
    Image.fromarray(np.full((40, 40), 1 << 20, np.int32)).save(tmp_path / "c.tif")
    images = read_images(tmp_path, ImageNet(32, 32))
    with pytest.warns(UserWarning, match="2 of 3 files .* cannot be read and are skipped"):
        assert images.names == ("a.png",)
    assert [name for name, _ in images.skipped] == ["b.tif", "c.tif"]


def test_orientation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    noise(40, 60).save(tmp_path / "turned.png", exif=exif)
    noise(40, 60).save(tmp_path / "upright.png")
    turned, upright = pixels(read_images(tmp_path, SMALL))
    np.testing.assert_array_equal(turned, upright)


def test_folder_is_recursive_sorted_and_rereadable(folder):
    images = read_images(str(folder), SMALL, batch=3)
    assert images.names == SORTED and len(images) == 7
    assert images.source == str(folder) and images.resize == "crop" and images.skipped == ()
    first, second = [*images], [*images]
    assert [len(block) for block in first] == [3, 3, 1]
    assert all(block.dtype == np.float32 and block.shape[1:] == (32, 32, 3) for block in first)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    raw = pixels(images).astype(np.float32)
    expected = (raw / 255 - np.float32(SMALL.mean)) / np.float32(SMALL.std)
    np.testing.assert_array_equal(np.concatenate(first), expected)


def test_batch_changes_nothing_and_everything_else_the_digest(folder):
    plain = read_images(folder, SMALL)
    for batch in (1, 2, 7):
        images = read_images(folder, SMALL, batch=batch)
        np.testing.assert_array_equal(pixels(images), pixels(plain))
        assert images.digest == plain.digest and len(plain.digest) == 64
    others = [read_images(folder, SMALL, resize="squash"), read_images(folder, SMALL, limit=6)]
    assert len({plain.digest, *(images.digest for images in others)}) == 3
    (folder / "z.ppm").rename(folder / "A.ppm")
    assert read_images(folder, SMALL).digest != plain.digest  # the order counts


def test_limit_takes_the_first_readable(folder):
    (folder / "a.webp").write_bytes(b"broken")
    images = read_images(folder, SMALL, limit=2)
    with pytest.warns(UserWarning, match="1 of 3 files"):
        assert images.names == ("B.gif", "b.bmp")
    assert count(images) == 2 and pixels(images).shape == (2, 32, 32, 3)
    assert len(read_images("photos", SMALL, limit=5)) == 5
    assert len(read_images("photos", SMALL, limit=500)) == 48


def test_one_file(folder):
    images = read_images(folder / "b" / "two.JPG", SMALL)
    assert images.names == ("two.JPG",)
    np.testing.assert_array_equal(pixels(images)[0], pixels(read_images(folder, SMALL))[5])
    refused(folder / "labels.txt", "labels.txt", "not a picture")


def test_links_are_followed_once(folder):
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    noise(40, 40).save(elsewhere / "linked.png")
    (folder / "y").symlink_to(elsewhere, target_is_directory=True)
    assert read_images(folder, SMALL).names == (*SORTED[:6], "y/linked.png", "z.ppm")


def test_pictures_are_read_when_they_are_needed(folder):
    """A set of any size streams: no more than the next block is read ahead."""
    blocks = iter(read_images(folder, SMALL, batch=2))
    next(blocks)
    for name in SORTED[4:]:
        (folder / name).unlink()
    with pytest.warns(UserWarning, match="3 of 7 files"):
        assert len([*blocks]) == 1


@pytest.fixture
def many(tmp_path) -> Path:
    """A folder of forty JPEGs, 00.jpg to 39.jpg."""
    for i in range(40):
        noise(60, 50, i).save(tmp_path / f"{i:02}.jpg")
    return tmp_path


@pytest.fixture
def decoding(monkeypatch) -> list[str]:
    """The names of the threads that decoded something, in order; two of them at a time, whatever the machine has."""
    threads, decoded = [], files.decoded

    def recorded(*arguments, **options):
        threads.append(threading.current_thread().name)
        return decoded(*arguments, **options)

    monkeypatch.setattr(files, "decoded", recorded)
    monkeypatch.setattr(files, "THREADS", 2)
    return threads


def at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxcircuits")]


def test_reading_ahead_changes_no_picture(many, decoding, monkeypatch):
    expected = [files.fitted(Image.open(path), 32, 40, "crop") for path in sorted(many.iterdir())]
    rng, decoded = random.Random(0), files.decoded

    def late(picture, **options):  # so that they are done in another order
        time.sleep(rng.random() / 100)
        return decoded(picture, **options)

    monkeypatch.setattr(files, "decoded", late)
    images = read_images(many, SMALL, batch=7)
    del decoding[:]
    np.testing.assert_array_equal(pixels(images), expected)
    assert len(decoding) == 40 and len({*decoding}) == 2 and threading.main_thread().name not in decoding
    assert not at_work()


def test_reading_ahead_is_bounded(many, decoding):
    images = read_images(many, SMALL, batch=4)
    assert not at_work()  # to look whether there is anything takes no thread
    del decoding[:]
    for i, (_, n) in enumerate(batches(images, 2)):
        # as many as were taken, of which there are whole blocks, and one block more
        expected = min(4 * (i // 2 + 1) + 4, 40)
        deadline = time.monotonic() + 20
        while len(decoding) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        assert len(decoding) == expected and n == 2
    assert i == 19 and not at_work()


def test_pillows_warnings_are_silenced_in_the_callers_thread(many, monkeypatch):
    """Filters of warnings are the whole process's; two threads that change them leave them changed."""
    threads, opened = set(), files.opened

    def recorded(path):
        threads.add(threading.current_thread())
        return opened(path)

    monkeypatch.setattr(files, "opened", recorded)
    assert len(pixels(read_images(many, SMALL))) == 40 and threads == {threading.main_thread()}


def test_palettes_with_transparency_are_read_without_a_warning(tmp_path):
    noise(64, 48).quantize(16).save(tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    with Image.open(tmp_path / "a.png") as picture:
        assert isinstance(picture.info["transparency"], bytes)
        expected = np.asarray(picture.convert("RGBA"))[..., :3]
        np.testing.assert_array_equal(np.asarray(files.decoded(picture)), expected)


@pytest.mark.parametrize("error", [MemoryError, InputError])
def test_errors_come_from_the_threads(many, monkeypatch, error):
    """A file that goes bad is an error of ours; what says nothing about the file arrives as it is."""
    images, decoded = read_images(many, SMALL, batch=4), files.decoded
    assert len(images) == 40
    seventh = noise(60, 50, 7)

    def failing(picture, **options):
        picture.load()
        if np.array_equal(np.asarray(picture), np.asarray(bad)):
            raise MemoryError("too little") if error is MemoryError else OSError("gone bad")
        return decoded(picture, **options)

    seventh.save(many / "07.jpg")
    with Image.open(many / "07.jpg") as bad:
        bad.load()
    monkeypatch.setattr(files, "decoded", failing)
    message = "too little" if error is MemoryError else r"'07\.jpg' in .* cannot be read: gone bad"
    found = batches(images, 2)
    assert [next(found)[1], next(found)[1]] == [2, 2]
    with pytest.raises(error, match=message):
        next(found)
    assert not at_work()


def test_who_stops_early_leaves_no_thread(many, decoding, monkeypatch):
    images, decoded = read_images(many, SMALL, batch=16), files.decoded
    closed, dropped = batches(images, 1), iter(images)
    next(closed), next(dropped)
    assert at_work()
    closed.close()
    del dropped  # the files that it had opened are closed, too: a ResourceWarning would be an error
    assert not at_work()
    monkeypatch.setattr(files, "decoded", lambda picture: [time.sleep(0.02), decoded(picture)][1])
    del decoding[:]
    next(iter(images))
    assert 16 <= len(decoding) < 32  # the rest of the next block is not waited for
    with pytest.raises(ZeroDivisionError):
        for _ in batches(images, 1):
            1 / 0  # noqa: B018
    assert not at_work()
    assert image_shape(images) == (32, 32, 3) and not at_work()


def test_arrays_take_no_thread():
    for _ in read_images(ARRAY, SMALL, batch=2):
        assert not at_work()


def test_a_path_is_no_photos(folder, monkeypatch):
    """Nor anything else but a path, and what is recorded of it can be opened again."""
    monkeypatch.chdir(folder.parent)
    for name in ("photos", "array", "tfds:few.npy"):
        folder = folder.rename(folder.parent / name)
        images = read_images(Path(name), SMALL, resize="squash")
        assert images.resize == "squash" and images.names == SORTED
        assert read_images(images.source, SMALL, resize="squash").digest == images.digest
    assert read_images("photos", SMALL).resize is read_images(ARRAY, SMALL).resize is None


def test_images_that_change_are_an_error(folder):
    images = read_images(folder, SMALL)
    assert len([*images]) == 1
    noise(45, 45, 8).save(folder / "b.bmp")
    with pytest.raises(InputError, match="have changed"):
        pixels(images)
    (folder / "b.bmp").unlink()
    with pytest.raises(InputError, match=r"b\.bmp.* cannot be read"):
        pixels(images)


@pytest.fixture
def broken(folder) -> Path:
    """The folder with five files more that cannot be decoded."""
    jpeg, png = encoded(noise(60, 50), "JPEG"), bytearray(encoded(noise(60, 50), "PNG"))
    png[len(png) // 2] ^= 1
    (folder / "b" / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "checksum.png").write_bytes(png)
    (folder / "text.png").write_text("I am no picture")
    (folder / "empty.jpg").touch()
    noise(3000, 2).save(folder / "strip.png")
    return folder


BROKEN = ("b/truncated.jpg", "checksum.png", "empty.jpg", "strip.png", "text.png")


@pytest.mark.parametrize("first", [len, lambda images: images.names, lambda images: images.skipped, pixels])
def test_broken_files_are_named_and_skipped(broken, first):
    images = read_images(broken, SMALL, batch=4)
    with pytest.warns(UserWarning, match="5 of 12 files .* skipped, the first 'b/truncated.jpg'") as caught:
        first(images)
    assert len(caught) == 1
    for _ in range(2):  # and no further warning
        assert len(images) == 7 and images.names == SORTED and len(pixels(images)) == 7
    assert tuple(name for name, _ in images.skipped) == BROKEN
    reasons = dict(images.skipped)
    assert "truncated" in reasons["b/truncated.jpg"] and "times as long" in reasons["strip.png"]
    assert reasons["text.png"] == reasons["empty.jpg"] == "not a picture of a known format"


def test_strict_refuses_broken_files(broken):
    refused(broken, "5 of 12 files", "b/truncated.jpg", strict=True)
    for name in BROKEN:
        (broken / name).unlink()
    assert len(read_images(broken, SMALL, strict=True)) == 7


def test_decompression_bombs_are_skipped(folder, monkeypatch):
    """Pillow warns above its limit and raises above twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3600)
    noise(90, 70).save(folder / "bomb.png")
    noise(90, 90).save(folder / "larger bomb.png")
    images = read_images(folder, SMALL)
    with pytest.warns(UserWarning, match="2 of 9 files"):
        assert [name for name, why in images.skipped if "exceeds limit" in why] == ["bomb.png", "larger bomb.png"]
    assert len(pixels(images)) == 7


def test_nothing_to_read(tmp_path):
    refused(tmp_path, "holds no pictures", ".jpg")
    (tmp_path / "a.png").write_text("no")
    (tmp_path / "b.jpg").write_text("no")
    refused(tmp_path, "nothing", "of 2 files", "a.png")
    refused(tmp_path / "c.png", "there is no", "c.png", "a.png")
    refused(str(tmp_path / "absent" / "c.png"), "there is no", "photos")
    refused("x" * 5000, "there is no")


def test_other_bad_arguments(folder):
    refused(folder, "resize", "stretch", "squash", resize="stretch")
    refused(folder, "batch", "at least 1", batch=0)
    refused(folder, "limit", "at least 1", limit=0)
    refused(None, "NoneType")
    refused("photos:c", "photos:a", "photos:b")
    refused(Path("photos"), "there is no")


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"])
def test_the_quick_look_judges_as_decoding_does(tmp_path, kind):
    """Cut off or damaged anywhere: what passes `check` can be read, and what fails cannot."""

    def readable(**how) -> bool:
        try:
            with files.opened(path) as picture:
                files.decoded(picture, **how)
        except Exception:
            return False
        return True

    rng, path = random.Random(kind), tmp_path / "damaged"
    sound = encoded(noise(60, 50), kind.split()[-1], progressive=kind.startswith("progressive"))
    verdicts = []
    for _ in range(100):
        damaged = bytearray(sound)
        if rng.random() < 0.5:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256) if damaged else 0
        path.write_bytes(damaged)
        verdicts.append(readable())
        assert readable(sketch=True) == verdicts[-1]
    assert {*verdicts} == {True, False}


ARRAY = np.stack([np.asarray(noise(20, 30, i)) for i in range(5)])


def test_arrays_are_only_normalised(tmp_path):
    np.save(tmp_path / "some.npy", ARRAY)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(ARRAY))
    np.savez_compressed(tmp_path / "some.npz", images=ARRAY, labels=np.arange(5))
    digests = set()
    for source in (ARRAY, tmp_path / "some.npy", str(tmp_path / "fortran.npy"), tmp_path / "some.npz"):
        images = read_images(source, SMALL, batch=2, strict=True)
        assert len(images) == 5 and [len(block) for block in images] == [2, 2, 1]
        np.testing.assert_array_equal(pixels(images), ARRAY)
        digests.add(images.digest)
    assert len(digests) == 1
    assert images.names == ("some#0", "some#1", "some#2", "some#3", "some#4")
    assert read_images(ARRAY[:, :20], SMALL).digest != read_images(ARRAY[:, :20].reshape(5, 10, 40, 3), SMALL).digest


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_arrays(tmp_path):
    floats = ARRAY / np.float32(255)
    for array in (
        floats,
        ARRAY[..., :1],
        ARRAY[0],
        ARRAY.transpose(0, 3, 1, 2),
        ARRAY[:0],
        ARRAY.astype(np.uint16),
    ):
        np.save(tmp_path / "bad.npy", array)
        refused(tmp_path / "bad.npy", "bad.npy", str(array.shape), str(array.dtype), "uint8 (N, H, W, 3)")
        refused(array, "the array is", str(array.dtype))
    refused(floats, "need no read_images")
    np.savez(tmp_path / "bad.npz", pictures=ARRAY, labels=ARRAY)
    refused(tmp_path / "bad.npz", "'pictures', 'labels'", "'images'")
    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("no array")
        refused(tmp_path / name, "cannot be read as a NumPy array")
    np.save(tmp_path / "some.npy", ARRAY)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "some.npy").read_bytes()[:-9])
    refused(tmp_path / "cut.npy", "cannot be read as a NumPy array")


@pytest.mark.parametrize("name", ["bomb.npy", "bomb.npz", "pickle.npy"])
def test_pickles_are_not_opened(tmp_path, name):
    mark = tmp_path / "executed"
    array = np.array([Bomb(mark)], dtype=object)
    if name == "pickle.npy":
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    elif name == "bomb.npz":
        np.savez(tmp_path / name, images=array)
    else:
        np.save(tmp_path / name, array, allow_pickle=True)
    refused(tmp_path / name, "cannot be read as a NumPy array")
    assert not mark.exists()
    if name == "bomb.npy":
        np.load(tmp_path / name, allow_pickle=True)
        assert mark.exists()  # the bomb was live


def test_photos_have_two_halves():
    both, a, b = (read_images(name, SMALL) for name in ("photos", "photos:a", "photos:b"))
    assert len(both) == 48 and len(a) == len(b) == 24 and both.names == a.names + b.names
    np.testing.assert_array_equal(pixels(both), np.concatenate([pixels(a), pixels(b)]))
    stems = [{name.partition("#")[0] for name in half.names} for half in (a, b)]
    assert len(stems[0]) == len(stems[1]) == 6 and not stems[0] & stems[1]
    assert len({image.tobytes() for image in pixels(both)}) == 48
    assert pixels(both).std(axis=(1, 2, 3)).min() > 5  # nothing flat


def test_a_photograph_keeps_its_crops_when_others_come(monkeypatch):
    def half() -> dict[str, np.ndarray]:
        images = read_images("photos:b", SMALL)
        return dict(zip(images.names, pixels(images), strict=True))

    before = half()
    monkeypatch.setitem(photos._HALVES, "b", ("coffee.png", "chelsea.png"))
    np.testing.assert_array_equal(before["chelsea#3"], half()["chelsea#3"])
    sizes = [read_images("photos", SimpleNamespace(**{**vars(SMALL), "input_size": n})) for n in (16, 64)]
    small, large = (pixels(images).mean(axis=(1, 2, 3)) for images in sizes)
    np.testing.assert_allclose(small, large, atol=3)  # the same crops at any input size


def test_photos_need_their_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    refused("photos", "scikit-image", "pip install 'jaxcircuits[demo]'")


def test_nothing_heavy_is_imported():
    program = (
        "import sys; from jaxcircuits.data import read_images; [*read_images('photos', limit=1)];"
        "print({'skimage', 'sklearn', 'tensorflow_datasets', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()", run.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data folder with the set `few_photos`, written by tensorflow-datasets in the ordinary way."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    for kind in ("color", "gray"):
        (root / kind).mkdir()
        for i, image in enumerate(pixels(read_images("photos", SMALL, limit=6))):  # six sizes
            Image.fromarray(image[: 30 - i]).convert("RGB" if kind == "color" else "L").save(root / kind / f"{i}.png")

    with tfds.core.registered.skip_registration():

        class FewPhotos(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            KEY, KIND, CHANNELS = "image", "color", 3

            def _info(self):
                image = tfds.features.Image(shape=(None, None, self.CHANNELS), encoding_format="png")
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({self.KEY: image}))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(6), "validation": self._generate_examples(2)}

            def _generate_examples(self, number):
                for i in range(number):  # paths and not arrays, which TensorFlow would have to encode
                    yield i, {self.KEY: str(root / self.KIND / f"{i}.png")}

        class FewDrawings(FewPhotos):
            KEY = "drawing"

        class FewGrays(FewPhotos):
            KIND, CHANNELS = "gray", 1

    for builder in (FewPhotos, FewDrawings, FewGrays):
        builder(data_dir=root / "data", file_format="array_record").download_and_prepare()
    return root


@pytest.fixture
def data_dir(prepared, monkeypatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / "data"))
    return prepared


def test_tensorflow_datasets(data_dir):
    images = read_images("tfds:few_photos:train", SMALL, batch=4)
    assert len(images) == 6 and images.names[5] == "train#5" and "tensorflow" not in sys.modules
    expected = {image.tobytes() for image in pixels(read_images(data_dir / "color", SMALL))}  # tfds shuffles
    assert {image.tobytes() for image in pixels(images)} == expected
    assert [len(block) for block in images] == [4, 2]
    default = read_images("tfds:few_photos", SMALL)
    assert default.names == ("validation#0", "validation#1")  # there is no test split, so the next best
    assert default.digest == read_images("tfds:few_photos:1.0.0:validation", SMALL).digest
    assert len(read_images("tfds:few_photos:train[:50%]", SMALL)) == 3
    gray = {image.tobytes() for image in pixels(read_images("tfds:few_grays:train", SMALL))}
    assert gray == {image.tobytes() for image in pixels(read_images(data_dir / "gray", SMALL))}


def test_bad_tensorflow_datasets(data_dir, monkeypatch):
    refused("tfds:", "tfds:NAME")
    refused("tfds:mnits", "'mnits'", "'mnist'")
    refused("tfds:mnist", "'mnist'", "not on the disk", "download_and_prepare")
    refused("tfds:few_photos:tset", "'tset'", "train, validation")
    refused("tfds:few_photos:train[:0]", "no images", "train, validation")
    refused("tfds:few_drawings", "'image'", "drawing")
    refused("tfds:not a name", "'not a name'")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused("tfds:few_photos", "pip install")


NORMAL = np.random.default_rng(0).normal(size=(7, 4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 7, 10])
@pytest.mark.parametrize(
    "images",
    [NORMAL, NORMAL.astype(np.float64), [NORMAL[:2], NORMAL[2:3], NORMAL[3:]]],
    ids=["array", "float64", "blocks"],
)
def test_batches_have_one_size(images, size):
    found = [*batches(images, size)]
    assert all(block.shape == (size, 4, 5, 6) and block.dtype == np.float32 for block, _ in found)
    assert [n for _, n in found] == [size] * (7 // size) + ([7 % size] if 7 % size else [])
    np.testing.assert_array_equal(np.concatenate([block[:n] for block, n in found]), NORMAL)
    assert (found[-1][0][found[-1][1] :] == NORMAL[-1]).all(), "filled up with the last image"
    assert len({id(block) for block, _ in found}) == len(found)  # none is written to again


def test_batches_of_images(folder):
    images = read_images(folder, SMALL, batch=3)
    whole = np.concatenate([*images])
    found = [*batches(images, 5)]
    np.testing.assert_array_equal(np.concatenate([block[:n] for block, n in found]), whole)
    assert [n for _, n in found] == [5, 2] and count(images) == 7


def test_batches_of_jax_arrays():
    import jax

    [(block, n)] = batches(jax.numpy.asarray(NORMAL), 8)
    assert n == 7 and isinstance(block, np.ndarray)
    np.testing.assert_array_equal(block[:7], NORMAL)


def test_count():
    assert count(NORMAL) == count([NORMAL[:4], NORMAL[4:]]) == 7
    with pytest.raises(InputError, match="only once"):
        count(iter([NORMAL]))


def test_image_shape():
    assert image_shape(NORMAL) == image_shape([NORMAL]) == (4, 5, 6)
    assert image_shape(read_images("photos", SMALL)) == (32, 32, 3)
    with pytest.raises(InputError, match="no images"):
        image_shape([])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (ARRAY, "read_images"),
        ([(NORMAL, np.arange(7))], "hold a tuple that is no array"),
        (NORMAL[0], r"shape \(4, 5, 6\)"),
        ([NORMAL[0]], r"shape \(4, 5, 6\)"),
        (NORMAL.astype(np.int32), "int32"),
        (NORMAL[:0], "N > 0"),
        (np.where(NORMAL > 2, np.nan, NORMAL), "NaN"),
        ([NORMAL, NORMAL[:, :3]], "one shape"),
        ([], "no images"),
        ("photos", "the string 'photos'"),
        (None, "NoneType"),
    ],
)
def test_bad_images_for_batches(images, message):
    with pytest.raises(InputError, match=message):
        list(batches(images, 4))


def test_bad_size_for_batches():
    with pytest.raises(InputError, match="at least 1"):
        batches(NORMAL, 0)


def test_a_plan_takes_one_look_at_a_folder(folder, decoding):
    """The digest reads every picture; counting them takes no look of its own."""
    model = jc.load("alexnet", weights="random")
    images = read_images(folder, model)
    del decoding[:]
    plan(model, images, jc.Features("features.0", [1]), Options())
    assert len(decoding) == 7 + 1 and len(images) == 7  # the one is for the shape
