"""Folders of images and of videos that are protected file by file: images as PNG, videos as FFV1, both lossless."""

import csv
import hashlib
from abc import abstractmethod
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedssl.data.file_dataset import check_present
from fedssl.data.image_files import IMAGES, Size, decode
from fedssl.data.listing import Kind, ListedFile, list_files
from fedssl.data.video import VIDEOS, VideoDecoder
from fedssl.errors import DataError
from fedssl.privacy.unlearnable.film import film, write_film
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.picture import PICTURE
from fedssl.privacy.unlearnable.protector import Say
from fedssl.privacy.unlearnable.source import NO_LABEL, Source, most_common

TABLE = "metadata.csv"
_MOVING = tuple(suffix for suffix in VIDEOS.suffixes if suffix not in IMAGES.suffixes)


class Folder(Source):
    """Files in class folders, in `metadata.csv`, or side by side without labels.

    Args:
        root: The folder.

    Raises:
        DataError: It has no such files, or some that would be left out or overwrite each other.
    """

    kind: ClassVar[Kind]
    suffix: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self._root = root
        files = _listed(root, self.kind)
        self.paths = [root / file.name for file in files]
        self._targets = [str(PurePosixPath(file.name).with_suffix(self.suffix)) for file in files]
        _check_targets(root, files, self._targets)
        self.classes = sorted({file.label for file in files} - {""})
        numbers = {name: place for place, name in enumerate(self.classes)} | {"": NO_LABEL}
        self.labels = np.array([numbers[file.label] for file in files], dtype=np.int64)
        listed = "\n".join(f"{file.name} {path.stat().st_size}" for file, path in zip(files, self.paths, strict=True))
        self.identity = hashlib.sha256(listed.encode()).hexdigest()

    @abstractmethod
    def clean(self, example: int, size: Size | None) -> NDArray[np.uint8]:
        """Return an image or the middle frame of a video `[height, width, channels]`; None keeps its size."""

    @abstractmethod
    def rewrite(self, example: int, noise: Noise, target: Path) -> None:
        """Write one protected file."""

    def images(self, size: Size, say: Say) -> NDArray[np.uint8]:
        """Return all examples in one size."""
        found = []
        for example in range(len(self.paths)):
            found.append(self.clean(example, size))
            say(f"reading {self.kind.plural}", example + 1, len(self.paths))
        return np.stack(found)

    def pair(self, example: int, noise: Noise) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return an image or a middle frame as it is and as it is protected."""
        image = self.clean(example, None)
        return image, noise.apply(image[None], example)[0]

    def protect(self, noise: Noise, out: Path, say: Say) -> None:
        """Write the files that are missing, and the table where there is one."""
        for example, name in enumerate(self._targets):
            target = out / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.partial")
                self.rewrite(example, noise, partial)
                partial.replace(target)
            say(f"writing {self.kind.plural}", example + 1, len(self._targets))
        if (self._root / TABLE).is_file():
            self._write_table(out / TABLE)

    def _write_table(self, target: Path) -> None:
        with (self._root / TABLE).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or ())
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            for row in rows:
                writer.writerow(row | {"file": str(PurePosixPath(row["file"]).with_suffix(self.suffix))})
        partial.replace(target)


class ImageFolder(Folder):
    """Images, each in its own size; all of one folder are grey or none is."""

    kind, suffix = IMAGES, ".png"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        looked = [_look(path) for path in self.paths]
        self.size = most_common([size for size, _ in looked])
        self._channels = 1 if all(grey for _, grey in looked) else 3

    def clean(self, example: int, size: Size | None) -> NDArray[np.uint8]:
        """Return an image."""
        return decode(self.paths[example], str(self.paths[example]), self._channels, size)

    def rewrite(self, example: int, noise: Noise, target: Path) -> None:
        """Write a protected image."""
        changed = self.pair(example, noise)[1]
        Image.fromarray(changed[..., 0] if self._channels == 1 else changed).save(target, "PNG")


class VideoFolder(Folder):
    """Videos, each in its own size; all frames of a video get the same pattern, sound is left out."""

    kind, suffix = VIDEOS, ".mkv"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._films = [film(path) for path in self.paths]
        self.size = most_common([each.size for each in self._films])
        self._channels = 1 if all(each.grey for each in self._films) else 3

    def clean(self, example: int, size: Size | None) -> NDArray[np.uint8]:
        """Return the middle frame of a video."""
        frames = self._frames(example, size)
        middle: NDArray[np.uint8] = frames[len(frames) // 2]
        return middle

    def rewrite(self, example: int, noise: Noise, target: Path) -> None:
        """Write a protected video."""
        write_film(target, noise.apply(self._frames(example, None), example), self._films[example].rate)

    def _frames(self, example: int, size: Size | None) -> NDArray[np.uint8]:
        return VideoDecoder(*(size or self._films[example].size), self._channels)(self.paths[example])


def holds_videos(root: Path) -> bool:
    """Return whether a folder has videos; a GIF counts as an image."""
    return any(path.suffix.lower() in _MOVING for path in _visible(root))


def _visible(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]


def _listed(root: Path, kind: Kind) -> list[ListedFile]:
    """Return the files of a folder, sorted by name; DataError where some would be left out."""
    found = [path for path in _visible(root) if path.suffix.lower() in (*IMAGES.suffixes, *VIDEOS.suffixes)]
    if found and not (root / TABLE).is_file() and all(path.parent == root for path in found):
        files = sorted((ListedFile(path.name, "", "") for path in found), key=lambda file: file.name)
    else:
        files = list_files(root, kind, None)
        check_present(root, files)
    if left_out := sorted(set(found) - {root / file.name for file in files}):
        raise DataError(f"{left_out[0]}: would be left unprotected; {kind.plural} lie in class folders or in {TABLE}")
    return files


def _check_targets(root: Path, files: list[ListedFile], targets: list[str]) -> None:
    seen = {PICTURE: "the picture of the protection"}
    for file, target in zip(files, targets, strict=True):
        parts = PurePosixPath(target).parts
        if PurePosixPath(target).is_absolute() or ".." in parts:
            raise DataError(f"{root / TABLE}: lists {file.name}, which is outside of the folder")
        if target in seen:
            raise DataError(f"{root / file.name}: would become {target}, as does {seen[target]}; rename it")
        seen[target] = file.name


def _look(path: Path) -> tuple[Size, bool]:
    """Return the size of an image as it is shown, and whether it is grey."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("it has several frames; make it a video file")
            turned = image.getexif().get(0x0112, 1) >= 5  # the camera was held upright
            size = (image.width, image.height) if turned else (image.height, image.width)
            return size, image.mode in ("1", "L", "LA")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error
