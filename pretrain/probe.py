"""What a backbone has learned so far, measured without training anything.

What comes in: features (images, d) in evaluation mode, labels where there are any. What goes out: weighted kNN
accuracy (Wu et al. 2018, https://arxiv.org/abs/1805.01978; lightly's implementation), RankMe (Garrido et al. 2023,
https://arxiv.org/abs/2210.02885), and the spread of the normalised features, by which collapse is seen (Chen & He
2021, https://arxiv.org/abs/2011.10566).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config import ProbeConfig
from pretrain.models import flat_features
from pretrain.progress import say
from pretrain.stream import EpochBatches, ShardSet, load_batches

BATCH = 256
# Enough rows for the rank of a few thousand features, and few enough for an eigendecomposition in a second.
RANK_IMAGES = 2048
KNN_BLOCK = 512


class Classifier(Protocol):
    """An objective that names the class of an image."""

    training: bool

    def logits(self, images: Tensor) -> Tensor:
        """Scores (batch, classes) of images (batch, 3, H, W)."""

    def train(self, mode: bool) -> nn.Module: ...
    def eval(self) -> nn.Module: ...


@dataclass
class Probe:
    """Measures a backbone on the first training images and on held-out ones.

    `view` turns a batch into network input; `held_out` may be None, or without labels: then there is no kNN.
    """

    train: ShardSet
    held_out: ShardSet | None
    config: ProbeConfig
    view: Callable[[dict[str, Tensor]], Tensor]
    warned: bool = field(default=False)

    @property
    def has_labels(self) -> bool:
        return bool(self.train.labels and self.held_out and self.held_out.labels)

    def measure(self, backbone: nn.Module, note: Callable[[str], None] = lambda text: None) -> dict[str, float]:
        """`knn_accuracy` (0 to 1; only with labels), `rankme`, and `feature_std` relative to isotropic features.

        `note` is told how far it is.
        """
        training = backbone.training
        backbone.eval()
        features, labels = self.features(backbone, self.held_out or self.train, self.config.test_images, note)
        measured = {"rankme": rankme(features[:RANK_IMAGES]), "feature_std": relative_spread(features)}
        if self.has_labels:
            bank, bank_labels = self.features(backbone, self.train, self.config.bank_images, note)
            measured["knn_accuracy"] = knn_accuracy(
                bank, bank_labels, features, labels, self.config.k, self.config.temperature
            )
        backbone.train(training)
        self.warn_of_collapse(measured)
        return measured

    @torch.no_grad()
    def classification(
        self, objective: Classifier, note: Callable[[str], None] = lambda text: None
    ) -> dict[str, float]:
        """`top1` and `top5` (0 to 1) of an objective's own classifier on the labelled held-out images."""
        training = objective.training
        objective.eval()
        right, seen = torch.zeros(2), 0
        for batch in load_batches(EpochBatches(self.held_out, BATCH, drop_last=False), workers=0):
            logits = objective.logits(self.view(batch)).float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
            hits = ranked == batch["label"][:, None]
            right += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
            seen += len(hits)
            note(f"classified {seen:,} of {self.held_out.samples:,} held-out images")
        objective.train(training)
        top1, top5 = (right / seen).tolist()
        return {"top1": top1, "top5": top5}

    @torch.no_grad()
    def features(
        self, backbone: nn.Module, shards: ShardSet, limit: int, note: Callable[[str], None]
    ) -> tuple[Tensor, Tensor | None]:
        """L2-normalised features (images, d) and labels (images,) of the first images of the shards."""
        features, labels, seen = [], [], 0
        for batch in load_batches(EpochBatches(shards, BATCH, drop_last=False), workers=0):
            features.append(F.normalize(flat_features(backbone(self.view(batch))).float(), dim=1))
            labels.append(batch.get("label"))
            seen += len(features[-1])
            wanted = min(limit, shards.samples)
            note(f"probe: {min(seen, wanted):,} of {wanted:,} images of {shards.folder.name}")
            if seen >= limit:
                break
        known = all(label is not None for label in labels)
        joined = torch.cat(features)[:limit]
        return joined, torch.cat(labels)[:limit].to(joined.device) if known else None

    def warn_of_collapse(self, measured: dict[str, float]) -> None:
        """Say once that the features have collapsed, with the evidence."""
        if measured["feature_std"] < self.config.collapse_share and not self.warned:
            self.warned = True
            say(
                f"WARNING: the features are collapsing: their spread is {measured['feature_std']:.3f} of isotropic "
                f"features' (warned below {self.config.collapse_share}), RankMe {measured['rankme']:.1f}; "
                "lower optimizer.lr, or check the views"
            )


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, k: int, temperature: float
) -> float:
    """Share of `features` (n, d) whose weighted k nearest neighbours in `bank` (m, d) vote for the right label.

    All rows are L2-normalised. Neighbours weigh exp(similarity / temperature); k is at most the size of the bank.
    """
    from lightly.utils.benchmarking import knn_predict

    classes = int(max(bank_labels.max(), labels.max())) + 1
    right = 0
    for start in range(0, len(features), KNN_BLOCK):
        block = slice(start, start + KNN_BLOCK)
        ranked = knn_predict(features[block], bank.T, bank_labels, classes, min(k, len(bank)), temperature)
        right += int((ranked[:, 0] == labels[block]).sum())
    return right / len(features)


def rankme(features: Tensor) -> float:
    """Effective rank of features (n, d): exp of the entropy of their normalised singular values."""
    features = features.double()
    gram = features @ features.T if len(features) < features.shape[1] else features.T @ features
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def relative_spread(features: Tensor) -> float:
    """Mean standard deviation of L2-normalised features (n, d), as a share of isotropic features' 1 / sqrt(d)."""
    from lightly.utils.debug import std_of_l2_normalized

    return float(std_of_l2_normalized(features)) * math.sqrt(features.shape[1])
