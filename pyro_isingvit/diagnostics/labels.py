"""What one draw of masks and weights says of the labels of images, for every kind of labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws import Draw, draw_labels, seeded
from ..models.likelihoods import Likelihood


@dataclass(frozen=True)
class Labels:
    """The distribution of the labels of n images given a draw; what it returns is on the CPU.

    Attributes:
        likelihood: the likelihood of the draw's model.
        outputs: outputs of its network, (n, outputs), on the device of the likelihood. Those of classes are logits.
    """

    likelihood: Likelihood
    outputs: Tensor

    def at(self, logit_scale: float) -> "Labels":
        """The same with another factor on the logits of classes; other labels have none."""
        if self.likelihood.kind != "classes":
            return self
        return Labels(self.likelihood, logit_scale * self.outputs)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        """Means of numbers, (n, k), or probabilities of classes or of several labels, (n, k)."""
        return self.likelihood.mean(self.outputs).cpu()

    @torch.no_grad()
    def log_prob(self, labels: Tensor) -> Tensor:
        """Log density of the labels of each image, in nats, (n,). Each image counts once."""
        labels = labels.to(self.outputs.device)
        given = labels.to(self.outputs.dtype) if labels.dtype == torch.bool else labels
        return self.likelihood.distribution(self.outputs).log_prob(given).cpu()

    @torch.no_grad()
    def log_likelihood(self, labels: Tensor) -> Tensor:
        """The same, (n,), times how much each image counts in training; see `Likelihood.counts`."""
        return self.likelihood.log_prob(self.outputs, labels.to(self.outputs.device)).cpu()

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Labels drawn at random, of the shape and type of `Images.labels`."""
        if self.likelihood.kind == "classes":
            return draw_labels(self.outputs.log_softmax(-1).cpu(), generator)
        with seeded(self.outputs.device, int(torch.randint(2**62, (), generator=generator))):
            drawn = self.likelihood.distribution(self.outputs).sample().cpu()
        return drawn.bool() if self.likelihood.kind == "several labels" else drawn


def labels_given(draw: Draw, images: Tensor, logit_scale: float = 1.0) -> Labels:
    """The distribution of the labels of images (n, channels, height, width) given a draw; see `Labels.at`."""
    outputs = draw.outputs(images).to(draw.model.prior.zero.device)
    return Labels(draw.model.likelihood, outputs).at(logit_scale)
