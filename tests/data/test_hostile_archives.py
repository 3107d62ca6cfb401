"""Images and archives that are odd, damaged or hostile: converted correctly, or refused with a reason."""

import gzip
import io
import resource
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from helpers import archives
from helpers.archives import Here, contents, jpeg, picture, pixels, prepare_here, tar_bytes
from twotower.data.dataset import DataSet
from twotower.data.prepared_set import load_prepared
from twotower.data.preparing.shard_worker import name_in_shard
from twotower.data.sources.archives import open_archive, walk
from twotower.data.sources.source import Entry

SIZE = 64


pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.slow]  # hundreds of archives and images


# Images

PICTURE = pixels(77, 120, 90)
PLAIN = jpeg(PICTURE)


def saved(kind: str, mode: str = "RGB", image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PICTURE)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int = 8, colours: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))


def png_bomb() -> bytes:
    """30,000 x 30,000 pixels of 0 in few bytes."""
    rows = zlib.compress(bytes(10**6))
    return png_header(30_000, 30_000) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def resized_header(content: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its header."""
    return patched(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def without_adobe(content: bytes) -> bytes:
    """The JPEG without the marker that says how its colours are stored."""
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) :]


def ycck() -> bytes:
    """A CMYK JPEG that says its first three channels are Y, Cb, Cr, as Adobe stores inks."""
    inks = Image.fromarray(255 - PICTURE).convert("YCbCr")
    stored = [part.point(lambda v: 255 - v) for part in inks.split()]  # because all inks are stored inverted
    content = saved("JPEG", "CMYK", Image.merge("CMYK", [*stored, Image.new("L", inks.size, 0)]))
    at = content.index(b"\xff\xee")
    return patched(content, at + 15, b"\x02")


def sixteen_bits() -> bytes:
    grey = np.asarray(Image.fromarray(PICTURE).convert("L")).astype(np.uint16) * 257
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def palette_with_holes() -> bytes:
    image = Image.fromarray(PICTURE).quantize(256)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=3)
    return file.getvalue()


def see_through() -> bytes:
    image = Image.fromarray(PICTURE).convert("RGBA")
    image.putalpha(Image.fromarray(PICTURE[..., 0]))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif)


def mpo() -> bytes:
    other = Image.fromarray(pixels(78, 120, 90))
    return saved("MPO", save_all=True, append_images=[other])


def broken_checksum(kind: bytes) -> bytes:
    content = saved("PNG")
    at = content.index(kind)
    end = at + 4 + int.from_bytes(content[at - 4 : at])
    return patched(content, end, bytes([content[end] ^ 255]))


COLOURS = PICTURE
GREY = np.asarray(Image.fromarray(PICTURE).convert("L").convert("RGB"))
BITS = np.asarray(Image.fromarray(PICTURE).convert("1").convert("RGB"))
WIDE = pixels(79, 20_000, 40)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BLACK = np.zeros((4, 4, 3), np.uint8)

# File -> bytes, and the result: all of its pixels (None: any), or the reason why it is rejected.
KINDS: dict[str, tuple[bytes, NDArray[np.uint8] | str | None]] = {
    "plain.JPEG": (PLAIN, COLOURS),
    "grey.JPEG": (saved("JPEG", "L"), GREY),
    "cmyk.JPEG": (saved("JPEG", "CMYK"), COLOURS),
    "cmyk_unmarked.JPEG": (without_adobe(saved("JPEG", "CMYK")), COLOURS),
    "ycck.JPEG": (ycck(), COLOURS),
    "rgb_stored.JPEG": (saved("JPEG", keep_rgb=True), COLOURS),
    "no_subsampling.JPEG": (saved("JPEG", subsampling=0), COLOURS),
    "progressive.JPEG": (saved("JPEG", progressive=True), COLOURS),
    "restart_marks.JPEG": (saved("JPEG", restart_marker_blocks=2), COLOURS),
    "with_profile.JPEG": (saved("JPEG", icc_profile=PROFILE), COLOURS),
    "exif_turn.JPEG": (turned(), COLOURS),
    "mpo.JPEG": (mpo(), COLOURS),
    "png.JPEG": (saved("PNG"), COLOURS),
    "bmp.JPEG": (saved("BMP"), COLOURS),
    "gif.JPEG": (saved("GIF"), COLOURS),
    "webp.JPEG": (saved("WEBP"), COLOURS),
    "tiff.JPEG": (saved("TIFF"), COLOURS),
    "jpeg.png": (PLAIN, COLOURS),
    "sixteen_bits_grey.png": (sixteen_bits(), GREY),
    "palette_with_holes.png": (palette_with_holes(), COLOURS),
    "see_through.png": (see_through(), COLOURS),
    "grey_see_through.png": (saved("PNG", "LA"), GREY),
    "one_bit.png": (saved("PNG", "1"), BITS),
    "wide.JPEG": (jpeg(WIDE), WIDE),
    "one_pixel.png": (saved("PNG", image=Image.new("RGB", (1, 1), (10, 200, 90))), np.full((1, 1, 3), (10, 200, 90))),
    "trailing_garbage.JPEG": (PLAIN + b"\xff\xd8 and <html> more" * 50, COLOURS),
    "half.JPEG": (PLAIN[: len(PLAIN) // 2], r"truncated"),
    "nearly.JPEG": (PLAIN[: len(PLAIN) * 95 // 100], r"truncated"),
    "no_end_mark.JPEG": (PLAIN[:-2], r"truncated"),
    "half_progressive.JPEG": (saved("JPEG", progressive=True)[:800], r"truncated"),
    "header_only.JPEG": (PLAIN[: PLAIN.index(b"\xff\xda")], r"truncated|decoded"),
    "half.png": (saved("PNG")[:4000], r"truncated"),
    "half.gif": (saved("GIF")[:3000], r"truncated|decoded"),
    "half.webp": (saved("WEBP")[:300], r"no image that can be decoded"),
    "empty.JPEG": (b"", r"^the file is empty$"),
    "text.JPEG": (b"This is not a picture.\n" * 40, r"cannot identify image file"),
    "html.JPEG": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", r"cannot identify image file"),
    "random.JPEG": (np.random.default_rng(0).bytes(5000), r"cannot identify image file"),
    "starts_like_one.JPEG": (b"\xff\xd8" + np.random.default_rng(1).bytes(5000), r"no image that can be decoded"),
    "zeros.JPEG": (bytes(5000), r"cannot identify image file"),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', r"cannot identify image file"),
    "postscript.JPEG": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"cannot identify image file"),
    "checksum_of_header.png": (broken_checksum(b"IHDR"), r"checksum|identify"),
    "checksum_of_data.png": (broken_checksum(b"IDAT"), COLOURS),
    "bomb.png": (
        png_bomb(),
        r"^30000 x 30000 pixels are more than 134,217,728$|^it has more than 134,217,728 pixels$",
    ),
    "below_the_bomb.png": (png_header(13_000, 13_000) + png_chunk(b"IDAT", b"x"), r"^13000 x 13000 pixels are more"),
    "bomb.JPEG": (resized_header(PLAIN, 65_500, 65_500), r"^65500 x 65500 pixels are more than 134,217,728$"),
    "larger_than_said.JPEG": (resized_header(PLAIN, 500, 500), None),  # Pillow fills the rest with grey
    "no_height.JPEG": (resized_header(PLAIN, 120, 0), r"no image that can be decoded|no pixels"),
    "no_width.png": (png_header(0, 10) + png_chunk(b"IEND", b""), r"no image|no pixels"),
}


def square_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    part = Image.fromarray(image[top : top + side, left : left + side].astype(np.uint8))
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@dataclass
class Outcome:
    """Pixels by name without ending, and reasons by name."""

    images: dict[str, NDArray[np.uint8]]
    rejects: dict[str, str]


def outcome(dataset: DataSet) -> Outcome:
    images = {}
    for i in range(len(dataset.train)):
        name = dataset.train.name(i).rpartition("/")[2].removesuffix(".jpg")
        images[name] = np.asarray(Image.open(io.BytesIO(dataset.train.read(i).tobytes())))
    return Outcome(images, {name.rpartition("/")[2]: reason for name, reason in dataset.rejects.items()})


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All kinds at once in one class of a folder, of a plain archive and of a compressed one."""
    root = tmp_path_factory.mktemp("kinds")
    files = [(f"set/train/cat/{name}", content) for name, (content, _) in KINDS.items()]
    files.append(("set/val/cat/0.jpg", picture(1)))
    (root / "plain.tar").write_bytes(tar_bytes(files))
    (root / "compressed.tgz").write_bytes(tar_bytes(files, "w:gz"))
    sources = {
        "folder": archives.write_tree(root / "folder", files),
        "plain": archives.tree_source(root, "plain.tar"),
        "compressed": archives.tree_source(root, "compressed.tgz"),
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.shard_worker.ProcessPoolExecutor", Here)
        for way, source in sources.items():
            prepare_here(source, root / way / "set", size=SIZE, quality=100, max_rejects=1)
            found[way] = outcome(load_prepared(root / way / "set"))
    return found


@pytest.mark.parametrize("way", ["folder", "plain", "compressed"])
@pytest.mark.parametrize("name", KINDS)
def test_an_odd_image_is_converted_or_rejected_with_a_reason(
    outcomes: dict[str, Outcome], name: str, way: str
) -> None:
    """The pixels are about right, or there is a sentence; a folder and archives give the same."""
    expected, found = KINDS[name][1], outcomes[way]
    stem = name.removesuffix(".JPEG")
    if isinstance(expected, str):
        assert stem not in found.images
        assert archives.matches(expected, found.rejects[name])
    elif expected is None:
        assert found.images[stem].shape == (SIZE, SIZE, 3)
    else:
        assert name not in found.rejects
        error = np.abs(found.images[stem].astype(int) - square_of(expected)).mean()
        assert error < (6 if name in ("gif.JPEG", "palette_with_holes.png", "one_bit.png") else 3)


def test_other_pixels_would_be_noticed(outcomes: dict[str, Outcome]) -> None:
    """Inverted, turned and swapped channels all fail the comparison above, and all kinds were tried."""
    plain = outcomes["plain"].images["plain"].astype(int)
    for wrong in (255 - COLOURS, np.rot90(COLOURS), COLOURS[..., ::-1], pixels(78, 120, 90), COLOURS[:, 40:]):
        assert np.abs(plain - square_of(np.ascontiguousarray(wrong))).mean() > 6
    for found in outcomes.values():
        assert len(found.images) + len(found.rejects) == len(KINDS)
        assert len(found.rejects) == sum(isinstance(expected, str) for _, expected in KINDS.values()) > 20


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_jpeg_that_is_cut_anywhere_is_rejected(tmp_path: Path, quality: int, part: float) -> None:
    content = jpeg(pixels(5, 200, 150), quality)
    files = [*archives.tree_files(), ("set/train/cat/cut.jpg", content[: int(len(content) * part)])]
    prepare_here(archives.write_tree(tmp_path / "folder", files), tmp_path / "set", size=16, max_rejects=1)
    assert list(load_prepared(tmp_path / "set").rejects) == ["train: train/cat/cut.jpg"]


# Archives


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def sealed(block: bytes) -> bytes:
    """A header block with a correct checksum."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


END = bytes(1024)
GOOD = archives.tree_files()
START = b"".join(header(name, len(content)) + padded(content) for name, content in GOOD)
ANSWERS = b"".join(header(f"set/train/cat/{n}.jpg", 3) + padded(b"abc") for n in range(9, 12))


def negative(name: str) -> bytes:
    """A header that says its file is -1024 bytes long."""
    return sealed(patched(header(name), 124, b"\xff" * 10 + struct.pack(">h", -1024)))


def gnu_sparse() -> bytes:
    block = header("set/train/cat/sparse.jpg", 512, tarfile.GNUTYPE_SPARSE)
    return sealed(patched(block, 386, b"%011o\0%011o\0" % (0, 512) + bytes(73) + b"%011o\0" % 2**33)) + bytes(512)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    return header("pax", len(records) if size is None else size, kind) + padded(records)


def record(key: bytes, value: bytes) -> bytes:
    content = b" " + key + b"=" + value + b"\n"
    length = len(content) + 2
    length += len(str(length)) > 2
    return str(length).encode() + content


PIC = padded(PLAIN)


def entry(name: str, **fields: Any) -> bytes:
    """A sound image under this name."""
    return header(name, len(PLAIN), **fields) + PIC


# Entry after ten sound images -> the result, in the words of the reject or of the refusal of the whole archive.
BAD_ENTRIES: dict[str, tuple[bytes, str]] = {
    "absolute path": (entry("/set/train/cat/a.jpg"), "its path leads out of the archive"),
    "parent": (entry("../../set/train/cat/a.jpg"), "its path leads out of the archive"),
    "parent within": (entry("x/../set/train/cat/a.jpg"), "its path leads out of the archive"),
    "backslashes": (entry("..\\x/train/cat/a.jpg"), "its path leads out of the archive"),
    "link": (header("set/train/cat/a.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "it is a link, not a file"),
    "hard link": (header("set/train/cat/a.jpg", kind=tarfile.LNKTYPE, linkname="set/x"), "it is a link, not a file"),
    "device": (header("set/train/cat/a.jpg", kind=tarfile.CHRTYPE, devmajor=1, devminor=5), "it is a device"),
    "block device": (header("set/train/cat/a.jpg", kind=tarfile.BLKTYPE, devmajor=8), "it is a device"),
    "pipe": (header("set/train/cat/a.jpg", kind=tarfile.FIFOTYPE), "it is a device or another special entry"),
    "sparse": (gnu_sparse(), "it is a device or another special entry"),
    "unknown type": (header("set/train/cat/a.jpg", kind=b"Q"), "it is a device or another special entry"),
    "empty": (header("set/train/cat/a.jpg"), "the file is empty"),
    "newline": (header("set/train/cat/a\nb.jpg", 3) + padded(b"abc"), "no image that can be decoded"),
    "escape": (header("set/train/cat/\x1b]0;x\x07.jpg", 3) + padded(b"abc"), "no image that can be decoded"),
    "no text": (header("set/train/cat/\udcff\udc80.jpg", 3) + padded(b"abc"), "no image that can be decoded"),
    "long name": (header("set/train/cat/" + "a" * 600 + ".jpg", 3) + padded(b"abc"), "no image that can be decoded"),
    "pax path": (pax(record(b"path", b"/set/train/cat/a.jpg")) + entry("x.jpg"), "its path leads out of the archive"),
}


def tree_with(tmp_path: Path, content: bytes, name: str = "one.tar") -> Any:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(content)
    return archives.tree_source(root, name)


@pytest.fixture
def nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Runs the test in an empty folder. It is called when the archive is there; then only `set` may change."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    seen: list[dict[str, str]] = []

    def outside() -> dict[str, str]:
        return {name: digest for name, digest in contents(tmp_path).items() if not name.startswith("set/")}

    yield lambda: seen.append(outside())
    (before,) = seen
    assert outside() == before


@pytest.mark.parametrize("what", BAD_ENTRIES)
def test_a_hostile_entry_is_rejected_and_the_others_are_read(
    tmp_path: Path, nothing_outside: Callable[[], None], what: str
) -> None:
    """There is one reject with its reason, in printable text; nothing is written outside of the set."""
    content, reason = BAD_ENTRIES[what]
    source = tree_with(tmp_path, START + content + END)
    nothing_outside()
    prepare_here(source, tmp_path / "set", size=16, max_rejects=1)
    dataset = load_prepared(tmp_path / "set")
    assert (len(dataset.train), len(dataset.val), dataset.classes) == (6, 4, ["cat", "dog"])
    ((name, why),) = dataset.rejects.items()
    assert reason in why
    assert name.isprintable()
    inside = {dataset.train.name(i).split("/", 2)[2] for i in range(6)}
    assert inside == {f"{one}/{n}.jpg" for one in ("cat", "dog") for n in range(3)}


def test_names_in_shards_are_plain(tmp_path: Path) -> None:
    """Whatever the names of an image and its class, unpacking a shard makes a file in a folder and nothing else."""
    odd = ["..", ".", "", "a/../..", "\n\x1b[0m", "\udcff", "é" * 300, "con.JPG", "-rf", "~", "a\\b", "x" * 5000]
    for class_name in odd:
        for name in odd:
            made = name_in_shard(Entry("f", 0, 1, class_name, f"train/cat/{name}.jpg", "", "file"), 9_999_999)
            folder, _, file = made.partition("/")
            assert "/" not in file
            assert not folder.startswith(".")
            assert not file.startswith(".")
            assert folder.isascii()
            assert file.isascii()
            assert made.isprintable()
            tarfile.TarInfo(made).tobuf(tarfile.USTAR_FORMAT)  # raises if a header cannot hold it


def zip_member(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


def bomb(entry_size: int, count: int) -> bytes:
    """A compressed archive of zeros: a member of gzip for each header and each content."""
    part = zip_member(entry_size)
    blocks = [gzip.compress(header(f"set/train/cat/{n}.jpg", entry_size)) + part for n in range(count)]
    return b"".join(blocks) + gzip.compress(END)


WHOLE = START + END
# Archive -> the sentence, which is about the archive as a whole.
BAD_ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut in an image": (lambda: WHOLE[: len(START) * 7 // 10], r"is damaged or incomplete \(.*\); get it again"),
    "cut in a header": (lambda: START + header("set/train/cat/a.jpg", 9)[:300], r"is damaged or incomplete"),
    "cut between images": (lambda: START, r"is damaged or incomplete \(no end mark at byte \d+\)"),
    "cut in compressed bytes": (lambda: gzip.compress(WHOLE)[:-3000], r"is damaged or incomplete"),
    "cut in gzip's last bytes": (lambda: gzip.compress(WHOLE)[:-4], r"is damaged or incomplete"),
    "changed compressed bytes": (
        lambda: patched(gzip.compress(WHOLE), 9000, b"12345678"),
        r"is damaged or incomplete",
    ),
    "broken header in the middle": (
        lambda: START + b"x" * 512 + padded(b"abc") + ANSWERS + END,
        r"is damaged or incomplete \(no end mark",
    ),
    "no tar at all": (lambda: b"PK\x03\x04 this is a zip" * 900, r"is damaged or incomplete"),
    "text": (lambda: b"<html>404</html>", r"is damaged or incomplete"),
    "compressed, but no tar": (lambda: gzip.compress(b"no tar" * 9000), r"is damaged or incomplete"),
    "gzip's mark and no more": (lambda: b"\x1f\x8b\x08", r"is damaged or incomplete"),
    "nothing": (lambda: b"", r"is damaged or incomplete"),
    "huge size": (lambda: START + header("set/train/cat/a.jpg", 2**60) + END, r"is damaged"),
    "size beyond the end": (lambda: START + header("set/train/cat/a.jpg", 2**22) + END, r"is damaged or incomplete"),
    "negative size": (lambda: START + negative("set/train/cat/a.jpg") + END, r"an entry ends before it begins"),
    "negative size first": (lambda: negative("set/train/cat/a.jpg") + START + END, r"is damaged"),
    "pax header of gigabytes": (
        lambda: START + pax(record(b"path", b"a"), size=2**33) + END,
        r"is damaged: a header asks for 8589934592 bytes",
    ),
    "long name of gigabytes": (
        lambda: START + header("x", 3 * 2**30, tarfile.GNUTYPE_LONGNAME) + END,
        r"is damaged: a header asks for 3221225472 bytes",
    ),
    "pax size of many digits": (
        lambda: START + pax(record(b"size", b"9" * 60)) + entry("set/train/cat/a.jpg") + END,
        r"is damaged",
    ),
    "pax sparse map that is no number": (
        lambda: START + pax(record(b"GNU.sparse.map", b"1,x")) + entry("set/train/cat/a.jpg") + END,
        r"is damaged or incomplete",
    ),
    "pax sparse map without end": (
        lambda: (
            START
            + pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
            + entry("set/train/cat/a.jpg")
            + END
        ),
        r"is damaged or incomplete|rejected",
    ),
    "headers that nest": (
        lambda: START + (header("x", 3, tarfile.GNUTYPE_LONGNAME) + padded(b"ab")) * 5000 + END,
        r"is damaged or incomplete \(maximum recursion",
    ),
    "one entry that unpacks to gigabytes": (lambda: bomb(2**26, 1)[:-100] + zip_member(2**26) * 20, r"damaged"),
    "many entries that unpack to gigabytes": (
        lambda: bomb(2**26, 18),
        r"is damaged, or no archive of images: it claims to hold more than 100 times its size",
    ),
    "many empty entries": (
        lambda: START + b"".join(header(f"set/train/cat/e{n}.jpg") for n in range(12_000)) + END,
        r"holds more than 10,000 entries that are no usable files, like set/train/cat/e10000.jpg \(the",
    ),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_a_damaged_or_hostile_archive_is_refused(
    tmp_path: Path, nothing_outside: Callable[[], None], what: str
) -> None:
    """Refused in one sentence that names it, in bounded memory, before any shard is written."""
    make, sentence = BAD_ARCHIVES[what]
    source = tree_with(tmp_path, make())
    nothing_outside()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=sentence) as caught:
        prepare_here(source, tmp_path / "set", size=16)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert "\n" not in str(caught.value)
    assert "root" in str(caught.value)
    assert not list((tmp_path / "set").rglob("*.tar"))
    assert grown < 400_000


def test_a_class_tar_that_is_damaged_names_itself(tmp_path: Path) -> None:
    """Archives inside the training archive of ILSVRC have their own offsets and their own end."""
    source = archives.ilsvrc(tmp_path / "source", 2012, train=2)
    wnid = archives.WNIDS[0]
    whole = tar_bytes((f"{wnid}_{n}.JPEG", picture(n)) for n in range(3))
    for inner in (whole[: len(whole) // 2 // 512 * 512], whole[:512] + b"y" * 512, b"", b"text" * 600):
        files = [(f"{wnid}.tar", inner), (f"{archives.WNIDS[1]}.tar", whole)]
        (tmp_path / "source" / "images_train.tar").write_bytes(tar_bytes(files))
        with pytest.raises(ValueError, match=rf"images_train\.tar(/{wnid}\.tar)? is damaged"):
            prepare_here(source, tmp_path / "set", size=16)
    link = tarfile.TarInfo(f"{wnid}.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    (tmp_path / "source" / "images_train.tar").write_bytes(link.tobuf() + END)
    with pytest.raises(ValueError, match=rf"damaged: {wnid}\.tar cannot be used \(it is a link, not a file\)"):
        prepare_here(source, tmp_path / "set", size=16)


def test_cifar_batches_that_are_cut_or_wrong(tmp_path: Path) -> None:
    """A label that is no class is a reject. An archive that is cut within a batch is refused."""
    archives.write_cifar10(tmp_path / "whole.tar.gz", batches=1)
    with tarfile.open(tmp_path / "whole.tar.gz") as tar:
        files = [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
    (name, batch), rest = files[0], files[1:]
    source = tree_with(tmp_path, tar_bytes([*rest, (name, patched(batch, 3073, b"\x0a"))]))
    source.splits = {"train": "train", "test": "val"}
    prepare_here(source, tmp_path / "set", size=32, max_rejects=1)
    assert load_prepared(tmp_path / "set").rejects == {"train: data_batch_1_00001": "its label is 10"}
    cut = tar_bytes([*rest, (name, batch)])
    tree_with(tmp_path, cut[: cut.index(batch) + 3073 * 5])
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        prepare_here(source, tmp_path / "other", size=32)


def stop(*args: Any) -> None:
    raise ValueError("stopped here")


def test_an_archive_that_changes_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    """Images of a plain archive that became shorter are rejects. A compressed one with other bytes is refused."""
    for name, packed in (("one.tar", WHOLE), ("one.tgz", gzip.compress(WHOLE))):
        source = tree_with(tmp_path, packed, name)
        output = tmp_path / f"set-{name}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twotower.data.preparing.build_set.convert_set", stop)
            with pytest.raises(ValueError, match="stopped here"):
                prepare_here(source, output, size=16)
        (tmp_path / "root" / name).write_bytes(packed[:200] + bytes(len(packed) - 200))
        with pytest.raises(ValueError, match=r"\d+ of 10 images cannot be used|tgz was changed, or"):
            prepare_here(source, output, size=16)


def test_a_long_listing_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """Entries are forgotten once they have been read, because tarfile alone would keep them all."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.tar"
        path.write_bytes(b"".join(header(f"set/train/cat/{n}.jpg", 3) + padded(b"abc") for n in range(count)) + END)
        tracemalloc.start()
        with open_archive(path) as view:
            assert sum(1 for _ in walk(view, path)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # the first one also loads modules that stay loaded
    # Python interns the parts of paths, and lays out its table of them anew, some megabytes at once, after tens of
    # thousands of new ones. That may fall into one of two listings in a row, and not into both.
    assert min(peak(4000), peak(4000)) < 2 * peak(100) + 100_000
