"""Small image files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, colour: tuple[int, int, int], height: int = 6, width: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(path)
