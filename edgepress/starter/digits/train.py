"""Train the model and write digits.safetensors: `python train.py` (about 40 seconds of one CPU core)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from data import train, validation
from model import digit_net
from safetensors.torch import save_file
from torch import Tensor

EPOCHS, BATCH, RATE = 40, 32, 4e-3


def shifted(images: Tensor) -> Tensor:
    """Move every image by up to two pixels; the edge is repeated."""
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    offsets = torch.randint(0, 5, (len(images), 2))
    return torch.stack([padded[i, :, dy : dy + 16, dx : dx + 16] for i, (dy, dx) in enumerate(offsets.tolist())])


def main() -> None:
    """Train with small shifts, say the accuracy, write the checkpoint."""
    torch.manual_seed(0)
    images, labels = train().tensors
    model = digit_net()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        model.train()
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = F.cross_entropy(model(shifted(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    judged, truth = validation().tensors
    with torch.no_grad():
        accuracy = (model(judged).argmax(1) == truth).float().mean().item()
    save_file(model.state_dict(), Path(__file__).with_name("digits.safetensors"))
    print(f"accuracy {accuracy:.4f} on {len(truth)} validation images; wrote digits.safetensors")


if __name__ == "__main__":
    main()
