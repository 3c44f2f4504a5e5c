"""What a backbone has learned so far, measured on its features while it is frozen.

What comes in: the backbone, and images, with labels where there are any. What goes out: the accuracy of weighted
nearest neighbours (Wu et al. 2018, https://arxiv.org/abs/1805.01978) and of a linear probe, RankMe (Garrido et al.
2023, https://arxiv.org/abs/2210.02885) and the spread of the normalised features (Chen & He 2021,
https://arxiv.org/abs/2011.10566), by which collapse is seen, their uniformity, and their alignment between random
views. Statistics are computed in single precision or better, whatever precision the backbone runs in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.clip_times import ShownTimes
from pretrain.config import ProbeConfig
from pretrain.hypersphere import alignment, uniformity
from pretrain.linear_probe import fit_linear_probe
from pretrain.models import flat_features
from pretrain.probe_images import ProbeImages
from pretrain.probe_time import ProbeTime
from pretrain.progress import say
from pretrain.shard_set import ShardSet

# Enough rows for the rank of a few thousand features, and few enough for an eigendecomposition in a second; also for
# what is a mean over pairs.
RANK_IMAGES = 2048
# Each costs two further views and passes; their mean distance is then known to two per cent or so.
ALIGNED_IMAGES = 1024
KNN_BLOCK = 512
# Of few features or images the rank is low anyway; this share of the largest possible one is low among many, too.
LOW_RANK_SHARE = 0.02

Note = Callable[[str], None]


def silent(text: str) -> None:
    """A note that goes nowhere."""


class FeaturesNotFinite(ValueError):
    """A backbone gives features that are no numbers; the message says how many and what to do."""


class Classifier(Protocol):
    """An objective that names the class of an image."""

    training: bool

    def logits(self, images: Tensor) -> Tensor:
        """Scores (batch, classes) of images (batch, 3, H, W)."""

    def train(self, mode: bool) -> nn.Module: ...
    def eval(self) -> nn.Module: ...


def probe_is_due(config: ProbeConfig, step: int, steps_per_epoch: int) -> bool:
    """Whether there is a probe after so many steps of training; a pure function, so that resuming changes nothing."""
    epoch, rest = divmod(step, steps_per_epoch)
    by_epochs = config.every_epochs and not rest and epoch and epoch % config.every_epochs == 0
    by_steps = config.every_steps and step and step % config.every_steps == 0
    return bool(by_epochs or by_steps)


@dataclass
class Probe:
    """Measures a backbone on the first training images and on held-out ones.

    Args:
        train: the training shards.
        held_out: may be None, or without labels: then neither neighbours nor the linear probe are measured.
        config: which measures, on how many images.
        view: turns a batch into network input (batch, 3, size, size).
        two_views: makes two random views (2, batch, 3, size, size) of a batch; without it there is no alignment.
        times: which frames of clips `view` and `two_views` show; without it, clips are decoded whole.
    """

    train: ShardSet
    held_out: ShardSet | None
    config: ProbeConfig
    view: Callable[[dict[str, Tensor]], Tensor]
    two_views: Callable[[dict[str, Tensor]], Tensor] | None = None
    times: ShownTimes | None = None
    warned: bool = field(default=False)
    time: ProbeTime = field(default_factory=ProbeTime)

    def __post_init__(self) -> None:
        self.bank_images = ProbeImages(self.train, self.config.keep_mib, self.times)
        self.test_images = self.bank_images
        if self.held_out:
            self.test_images = ProbeImages(self.held_out, self.config.keep_mib, self.times)

    @property
    def has_labels(self) -> bool:
        return bool(self.train.labels and self.held_out and self.held_out.labels)

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint, so that a resumed run says nothing twice."""
        return {"warned": self.warned, "time": self.time.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.warned = state["warned"]
        self.time.restore(state["time"])

    @torch.no_grad()
    def measure(self, backbone: nn.Module, note: Note = silent) -> dict[str, float]:
        """The measures of `probe.measures`, of those that are possible.

        `rankme`; `feature_std` relative to isotropic features; `uniformity`; `alignment`; `knn_accuracy` and
        `linear_accuracy` (0 to 1). `note` is told how far it is.

        Raises:
            FeaturesNotFinite: the backbone gives features that are no numbers.
        """
        training = backbone.training
        backbone.eval()
        with self.time.measuring():
            features, labels = self.features(backbone, self.test_images, self.config.test_images, note)
            measured = self.shape_of(features)
            if self.two_views and "alignment" in self.config.measures:
                measured["alignment"] = self.alignment_of(backbone, note)
            if self.has_labels and {"knn", "linear"} & set(self.config.measures):
                bank = self.features(backbone, self.bank_images, self.config.bank_images, note)
                measured |= self.accuracies(bank, (features, labels), note)
        backbone.train(training)
        self.warn_of_collapse(measured, min(features[:RANK_IMAGES].shape))
        return measured

    def shape_of(self, features: Tensor) -> dict[str, float]:
        """What features (images, d) are like as a cloud of points, without labels."""
        wanted, measured = self.config.measures, {}
        few = features[:RANK_IMAGES]
        with full_precision(features), self.time.part("shape"):
            if "rankme" in wanted:
                measured["rankme"] = rankme(few)
            if "feature_std" in wanted:
                measured["feature_std"] = relative_spread(features)
            if "uniformity" in wanted:
                measured["uniformity"] = uniformity(few)
        return measured

    def accuracies(
        self, bank: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], note: Note = silent
    ) -> dict[str, float]:
        """Accuracy on the test features of neighbours in the bank, and of a linear probe that is fitted to it."""
        wanted, k, temperature = self.config.measures, self.config.k, self.config.temperature
        measured = {}
        with full_precision(bank[0]):
            if "knn" in wanted:
                note("probe: nearest neighbours")
                with self.time.part("knn"):
                    measured["knn_accuracy"] = knn_accuracy(*bank, *test, k, temperature)
            if "linear" in wanted:
                note("probe: linear probe")
                with self.time.part("linear"):
                    measured["linear_accuracy"] = fit_linear_probe(*bank).accuracy(*test)
        return measured

    def alignment_of(self, backbone: nn.Module, note: Note = silent) -> float:
        """The alignment of two random views of a few images."""
        first, second = [], []
        with self.time.part("alignment"):
            for batch in self.test_images.batches(ALIGNED_IMAGES):
                both = normalized_features(backbone, self.two_views(batch).flatten(0, 1))
                for half, views in zip(both.chunk(2), (first, second), strict=True):
                    views.append(half)
                note(f"probe: two views of {sum(map(len, first)):,} images")
            views = torch.cat(first), torch.cat(second)
            with full_precision(views[0]):
                return alignment(*views)

    @torch.no_grad()
    def classification(self, objective: Classifier, note: Note = silent) -> dict[str, float]:
        """`top1` and `top5` (0 to 1) of an objective's own classifier on the labelled held-out images."""
        training = objective.training
        objective.eval()
        right, seen = torch.zeros(2), 0
        with self.time.measuring(), self.time.part("classification"):
            for batch in self.test_images.batches(self.held_out.samples):
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
        self, backbone: nn.Module, images: ProbeImages, limit: int, note: Note
    ) -> tuple[Tensor, Tensor | None]:
        """L2-normalised features (images, d) and labels (images,) of the first images."""
        features, labels, seen = [], [], 0
        wanted, folder = min(limit, images.shards.samples), images.shards.name
        with self.time.part("features"):
            for batch in images.batches(limit):
                features.append(normalized_features(backbone, self.view(batch)))
                labels.append(batch.get("label"))
                seen += len(features[-1])
                note(f"probe: {seen:,} of {wanted:,} images of {folder}")
            joined = torch.cat(features)
            require_finite(joined, folder)
        known = all(label is not None for label in labels)
        return joined, torch.cat(labels).to(joined.device) if known else None

    def warn_of_collapse(self, measured: dict[str, float], full_rank: int) -> None:
        """Say once that the features have collapsed to a point or to a few directions, with the evidence."""
        least_spread = self.config.collapse_share
        least_rank = min(self.config.collapse_rank, LOW_RANK_SHARE * full_rank)
        spread, rank = measured.get("feature_std", math.inf), measured.get("rankme", math.inf)
        if self.warned or not (spread < least_spread or rank < least_rank):
            return
        self.warned = True
        evidence = {
            "feature_std": f"their spread is {spread:.3f} of isotropic features' (warned below {least_spread})",
            "rankme": f"RankMe {rank:.1f} of {full_rank:,} (warned below {least_rank:.2f})",
        }
        found = ", ".join(text for measure, text in evidence.items() if measure in measured)
        say(f"WARNING: the features are collapsing: {found}; lower optimizer.lr, or check the views")


def normalized_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """L2-normalised features (batch, d) in single precision of images (batch, 3, height, width)."""
    return F.normalize(flat_features(backbone(images)).float(), dim=1)


def full_precision(features: Tensor) -> torch.autocast:
    """Products of features within a mixed-precision run are not rounded to 16 bits."""
    return torch.autocast(features.device.type, enabled=False)


def require_finite(features: Tensor, folder: str) -> None:
    """One line where features are no numbers, in evaluation mode, though the loss may have been one."""
    broken = int((~features.isfinite()).any(1).sum())
    if broken:
        raise FeaturesNotFinite(
            f"the features of {broken:,} of {len(features):,} images of {folder} are not finite numbers; lower "
            "optimizer.lr, or train with precision=32-true"
        )


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, features: Tensor, labels: Tensor, k: int, temperature: float
) -> float:
    """Share of `features` (n, d) whose weighted k nearest neighbours in `bank` (m, d) vote for the right label.

    All rows are L2-normalised. Neighbours weigh exp(similarity / temperature); k is at most the size of the bank.
    The vote is that of lightly's `knn_predict`, whose import takes seconds.
    """
    classes = int(bank_labels.max()) + 1
    right = 0
    for start in range(0, len(features), KNN_BLOCK):
        block = slice(start, start + KNN_BLOCK)
        similarity, nearest = (features[block] @ bank.T).topk(min(k, len(bank)), dim=1)
        # Relative to the nearest one, or a low temperature would overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(weights), classes).scatter_add(1, bank_labels[nearest], weights)
        right += int((votes.argmax(1) == labels[block]).sum())
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
    return float(features.std(0).mean()) * math.sqrt(features.shape[1])
