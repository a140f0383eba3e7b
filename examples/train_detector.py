"""Train a detector on your own annotated photos, look at what it finds, keep it: python examples/train_detector.py FOLDER"""

import sys

import sppnet


def main(folder: str) -> None:
    train = sppnet.read_dataset(folder, split="train")  # VOC, COCO or YOLO
    model = sppnet.train_detector(train, preset="quick", output="mine.safetensors")

    validation = sppnet.read_dataset(folder, split="val")
    print(sppnet.evaluate(model, validation).to_dict()["map"])

    photo = validation.images[0].path
    found = model.detect(
        photo, score_threshold=-1
    )  # of SVMs, whose decision scores are below 0 for most of what is there
    found.draw(photo).save("found.png")
    print(found.to_dict())


if __name__ == "__main__":
    main(sys.argv[1])
