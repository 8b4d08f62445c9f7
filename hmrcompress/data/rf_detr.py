"""What RF-DETR-seg networks take and give, as their ONNX exports do.

Input: RGB, scaled to the input without keeping the aspect, ImageNet-normalised. Outputs, by name: `dets` (B,Q,4) centre
x, centre y, width, height as shares of the image; `labels` (B,Q,C) logits, of which the published networks have 91, in
the order of COCO's own numbers (person is 1); `masks` (B,Q,h,w) logits over the whole image, above 0 inside.
Layout: https://rfdetr.roboflow.com/latest/exports/onnx/.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hmrcompress.data.people import People
from hmrcompress.data.yolo import MOST_PEOPLE, resized
from hmrcompress.records import IMAGENET_MEAN, IMAGENET_STD

OUTPUTS = ("dets", "labels", "masks")
COCO_SLOTS, COCO_PERSON = 91, 1


def prepare(images: Tensor, target: tuple[int, int]) -> Tensor:
    """images (B,3,H,W) in 0..1 -> (B,3,*target), normalised."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized(images, target) - mean) / std


def people(dets: np.ndarray, labels: np.ndarray, masks: np.ndarray, size: tuple[int, int], least: float) -> People:
    """The people in one image of `size` (height, width): dets (Q,4), labels (Q,C), masks (Q,h,w).

    A query counts where the logit of a person is the greatest of its row and its sigmoid is at least `least`. Networks
    of other than 91 slots were trained on other classes; their first is taken for a person. Best first, at most 20.
    """
    person = COCO_PERSON if labels.shape[1] == COCO_SLOTS else 0
    scores = 1 / (1 + np.exp(-np.clip(labels[:, person].astype(np.float64), -50, 50)))
    good = (labels.argmax(1) == person) & (scores >= least) & np.isfinite(dets).all(1)
    chosen = np.flatnonzero(good)[np.argsort(-scores[good], kind="stable")][:MOST_PEOPLE]
    height, width = size
    middle, half = dets[chosen, :2].astype(np.float64), dets[chosen, 2:].astype(np.float64) / 2
    boxes = np.clip(np.concatenate([middle - half, middle + half], axis=1), 0, 1) * np.array([width, height] * 2)
    values = torch.from_numpy(masks[chosen].astype(np.float32))
    inside = resized(values[None], size)[0].numpy() > 0 if len(chosen) else np.zeros((0, *size), bool)
    return People(boxes, scores[chosen], inside)
