"""Find the photos most like one of them, whatever their sizes: python examples/embed_folder.py PHOTO FOLDER"""

import sys
from pathlib import Path

import numpy as np

import sppnet


def main(photo: str, folder: str) -> None:
    model = sppnet.load("voc")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    vectors = model.embed(files)  # [N, D]: one length, whatever the sizes
    asked = model.embed(photo)[0]
    similarity = vectors @ asked / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked))
    for index in np.argsort(-similarity)[:5]:
        print(f"{similarity[index]:.3f} {files[index]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
