"""Losses between images and captions: contrastive, reinforced by teachers, and the sigmoid kind.

Contrastive: CLIP (arXiv 2103.00020). Reinforced: MobileCLIP, equations 2 and 3 (arXiv 2311.17049); several teachers, each at its own
temperature: MobileCLIP2 (arXiv 2508.20691). Sigmoid: SigLIP (arXiv 2303.15343).

All arithmetic is in float32 (float64 where the embeddings are), also under autocast: at scale 100 bfloat16 is off by 0.4 in a logit.
With several processes each computes its own rows against the columns of all, so that DDP's mean of the gradients is the gradient of
the whole batch. There are two exchanges a step, one of the student's rows and one of the teachers', whatever the number of streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.batch import Rows
from mobileclip.errors import InputError
from mobileclip.training import distributed


@dataclass(frozen=True)
class Features:
    """What the student makes of a batch.

    Attributes:
        rows: L2-normalised embeddings, (b, embed_dim), float32 or float64.
        scale: (), the factor of the cosines, exp(logit_scale).
        bias: (), added to the logits; None for models without, which is 0.
    """

    rows: Rows
    scale: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """All (), of this process's rows; over several processes, the batch's are the means.

    Attributes:
        loss: contrastive + distillation, the one with gradient.
        contrastive: (1 - weight) * contrastive loss, summed over the caption streams.
        distillation: weight * cross-entropy against the teachers' mean distribution, summed likewise. It has the gradient of the divergence
            but never reaches 0, as the entropy of the teachers is in it.
        kl: Kullback-Leibler divergence of the student from the teachers, the mean over their members, unweighted, summed likewise, without
            gradient; 0 where the teachers have no weight.
    """

    loss: Tensor
    contrastive: Tensor
    distillation: Tensor
    kl: Tensor

    def detached(self) -> Losses:
        """The same numbers without their graph."""
        return Losses(**{f.name: getattr(self, f.name).detach() for f in fields(self)})


class Loss(Protocol):
    """What the trainer calls; all losses have this one signature."""

    def __call__(self, student: Features, teachers: Rows | None) -> Losses:
        """Compare a batch with itself, and with its teachers.

        Args:
            student: The student's embeddings.
            teachers: The teachers' embeddings, the members side by side, (b, sum of widths); not looked at where they have no weight.

        Raises:
            InputError: The teachers have weight, and their rows are missing or of another width.
        """


@dataclass(frozen=True)
class Teachers:
    """The members of an ensemble of teachers.

    Attributes:
        dims: Width of each member's embedding, in the order of the stored rows.
        scales: Factor of the cosines of each member, 1 / temperature; one value stands for all.
        biases: Added to the logits of each member, of teachers trained with the sigmoid loss; one value stands for all.
        weights: Of each member's probabilities in their mean; a member without weight is not looked at. One value stands for all.

    Raises:
        InputError: No members, none with weight, or another number of scales, biases or weights.
    """

    dims: tuple[int, ...]
    scales: tuple[float, ...] = (100.0,)
    biases: tuple[float, ...] = (0.0,)
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 1:
            raise InputError(f"teacher widths {self.dims}: at least one is needed, and each positive")
        for name in ("scales", "biases", "weights"):
            values = tuple(getattr(self, name))
            if len(values) not in (1, len(self.dims)):
                raise InputError(f"{len(values)} teacher {name} for {len(self.dims)} teachers; give one for all or one each")
            object.__setattr__(self, name, values * (len(self.dims) // len(values)))
        if min(self.weights) < 0 or not sum(self.weights):
            raise InputError(f"teacher weights {self.weights}: none may be negative, and one must be positive")

    def logits(self, rows: Tensor, columns: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Share in the mean and (rows, columns) logits of each member with weight."""
        members = zip(rows.split(self.dims, 1), columns.split(self.dims, 1), self.scales, self.biases, self.weights, strict=True)
        for r, c, scale, bias, weight in members:
            if weight:
                yield weight / sum(self.weights), (scale * r) @ c.T + bias

    def rows(self, teachers: Rows | None, student: Rows) -> Rows:
        """The rows that this student's captions need, without gradient, in the precision of the student's.

        Raises:
            InputError: Missing, or of another width.
        """
        if teachers is None or len(teachers.captions) < len(student.captions):
            raise InputError("the loss needs embeddings of teachers and the data has none; reinforce the data or set the weight to 0")
        synthetic = None if student.synthetic is None else teachers.synthetic
        needed = Rows(teachers.image, teachers.real, synthetic).map(lambda t: t.detach().to(student.image.dtype))
        widths = sorted({t.shape[1] for t in (needed.image, *needed.captions)})
        if widths != [sum(self.dims)]:
            raise InputError(
                f"teacher rows of {widths} values, but the teachers' widths {self.dims} add up to {sum(self.dims)}; correct the widths"
            )
        return needed


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _gathered(rows: Rows) -> Rows:
    """The rows of all processes, in one exchange."""
    columns = distributed.gather(torch.cat((rows.image, *rows.captions), 1))
    return Rows(*columns.split(rows.image.shape[1], 1))


def _pairs(rows: Rows, *, both_ways: bool) -> list[tuple[Tensor, Tensor]]:
    """(b, d) rows of this process and (B, d) columns of all, image to caption, and caption to image, of each caption stream."""
    columns = _gathered(rows)
    pairs = []
    for caption, caption_columns in zip(rows.captions, columns.captions, strict=True):
        pairs.append((rows.image, caption_columns))
        if both_ways:
            pairs.append((caption, columns.image))
    return pairs


@dataclass(frozen=True)
class _PairLoss:
    """What all losses share: a term against the true partners and one against the teachers, for each pair of rows and columns.

    Attributes:
        weight: Lambda of the paper, of the teachers' term: 0 (none) to 1 (nothing else).
        teachers: Needed where the weight is not 0. The target is the mean of the members' probabilities.

    Raises:
        InputError: A weight outside 0 to 1, or one without teachers.
    """

    both_ways: ClassVar[bool]

    weight: float = 0.0
    teachers: Teachers | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight {self.weight} of the distillation; choose 0 (none) to 1 (nothing else)")
        if self.weight and self.teachers is None:
            raise InputError(f"weight {self.weight} of the distillation needs teachers; describe them or set it to 0")

    def __call__(self, student: Features, teachers: Rows | None) -> Losses:
        """See `Loss`."""
        with torch.autocast(student.rows.image.device.type, enabled=False):
            rows = student.rows.map(_precise)
            contrastive = cross_entropy = kl = rows.image.new_zeros(())
            pairs, targets = _pairs(rows, both_ways=self.both_ways), self._targets(rows, teachers)
            share = len(rows.captions) / len(pairs)
            for mine, others in pairs:
                logits = (student.scale * mine) @ others.T
                if student.bias is not None:
                    logits = logits + student.bias
                if self.weight < 1:
                    contrastive = contrastive + share * self._true(logits)
                if self.weight > 0:
                    target, entropy = next(targets)
                    soft = self._cross_entropy(logits, target)
                    kl = kl + share * (soft.detach() - entropy)
                    cross_entropy = cross_entropy + share * self._taught(logits, target, soft)
        contrastive, distillation = (1 - self.weight) * contrastive, self.weight * cross_entropy
        return Losses(contrastive + distillation, contrastive, distillation, kl)

    def _targets(self, rows: Rows, teachers: Rows | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each pair, the weighted means of the members' probabilities (b, B) and of their entropies ().

        Made one at a time, as one takes as much memory as the logits.
        """
        if not self.weight or self.teachers is None:
            return
        with torch.no_grad():
            pairs = _pairs(self.teachers.rows(teachers, rows), both_ways=self.both_ways)
        for mine, others in pairs:
            target = entropy = torch.zeros((), device=mine.device)
            with torch.no_grad():
                for share, logits in self.teachers.logits(mine, others):
                    p = self._probabilities(logits)
                    target, entropy = target + share * p, entropy + share * self._entropy(p)
            yield target, entropy

    def _true(self, logits: Tensor) -> Tensor:
        """(b, B) logits -> (), the loss against the true partners."""
        raise NotImplementedError

    def _taught(self, logits: Tensor, target: Tensor, cross_entropy: Tensor) -> Tensor:
        """(b, B) logits and the teachers' probabilities, () their cross-entropy -> (), the loss against them."""
        return cross_entropy

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _entropy(self, p: Tensor) -> Tensor:
        raise NotImplementedError

    def _probabilities(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


def _first_label(logits: Tensor) -> int:
    """The column at which the first of this process's rows finds its partner."""
    return len(logits) * distributed.rank()


@dataclass(frozen=True)
class ClipLoss(_PairLoss):
    """Softmax over the columns, from images to captions and from captions to images, each with a softmax of its own; the mean of both.

    Weight 0 is plain CLIP.
    """

    both_ways = True

    def _true(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) + _first_label(logits))

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def _entropy(self, p: Tensor) -> Tensor:
        return torch.special.entr(p).sum(1).mean()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)


@dataclass(frozen=True)
class SigLipLoss(_PairLoss):
    """Sigmoid of every pair, summed over the columns; only from images to captions, which covers each pair once.

    The columns are gathered rather than passed around a ring: (b, B) logits a process, as `ClipLoss` needs them.

    Attributes:
        soft_labels: How the teachers' probabilities p are matched. "cross-entropy": binary cross-entropy, least where the student's are p.
            "signed": -log sigmoid((2p - 1) * logit) as MobileCLIP2's code has it, which pulls every logit to an infinity, the faster
            the surer the teachers are.
    """

    both_ways = False

    soft_labels: Literal["cross-entropy", "signed"] = "cross-entropy"

    def _true(self, logits: Tensor) -> Tensor:
        label = -torch.ones_like(logits)
        label.diagonal(_first_label(logits)).fill_(1)
        return -F.logsigmoid(label * logits).sum(1).mean()

    def _taught(self, logits: Tensor, target: Tensor, cross_entropy: Tensor) -> Tensor:
        return -F.logsigmoid((2 * target - 1) * logits).sum(1).mean() if self.soft_labels == "signed" else cross_entropy

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()

    def _entropy(self, p: Tensor) -> Tensor:
        return (torch.special.entr(p) + torch.special.entr(1 - p)).sum(1).mean()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
