"""Pictures for the tutorials: handwritten digits in the folders of a server and three hospitals.

    python examples/three_hospitals.py trial

It writes trial/server/pictures, trial/hospital-a/pictures and so on, each with one folder a digit.
The second hospital has never seen a 7, an 8 or a 9.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

OWNERS = ("server", "hospital-a", "hospital-b", "hospital-c")


def write(root: Path) -> int:
    """Write the pictures below `root`, 32 by 32 pixels each, and count them."""
    digits, written = load_digits(), 0
    for k, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        owner = OWNERS[k // 10 % len(OWNERS)]
        if owner == "hospital-b" and digit > 6:
            continue
        folder = root / owner / "pictures" / f"digit {digit}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels * 15.9375).astype("uint8"))  # from 0..16 to 0..255
        picture.resize((32, 32)).save(folder / f"{k}.png")
        written += 1
    return written


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} pictures in {sys.argv[1]}")
