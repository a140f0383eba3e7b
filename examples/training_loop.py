"""Your own training loop, gradients through the pyramid and the convolutions: python examples/training_loop.py FOLDER STEPS"""

import sys

import torch
from torch.nn import functional as F

import sppnet


def main(folder: str, steps: int) -> None:
    data = sppnet.read_dataset(folder, split="train")
    architecture = sppnet.Architecture(data.class_names, levels=(3, 2, 1), hidden=(256,))
    model = sppnet.build_model(architecture, sppnet.Preprocess(short_side=240, long_side=400)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for step in range(steps):
        image, target = data[step % len(data)]
        proposals = sppnet.propose(image, "grid")[::20]
        boxes = torch.cat([torch.from_numpy(target["boxes"]), torch.from_numpy(proposals)])
        labels = torch.cat([torch.from_numpy(target["labels"]), torch.zeros(len(proposals), dtype=torch.int64)])

        images, (vertical, horizontal) = model.preprocess(image)
        scale = torch.tensor([horizontal, vertical, horizontal, vertical])
        logits, _ = model(images, boxes * scale)  # [R, 1 + K]; the second result moves the boxes
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
