"""How similar the output's patches are to each other, beside one vector of the image.

Similarities as distributions (SEED, arXiv 2101.04731, has them between images), or as they are
(Gram matrices, as DINOv3's, arXiv 2508.10104). They need no common width, and so no projector; the
vector of the image has a linear one.
"""

import torch
from torch import Tensor, nn

from limbeck.methods.cls_patch import OUTPUT, summarised
from limbeck.methods.comparison import Comparison
from limbeck.methods.options import OutputSimilarityOptions
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.losses import cosine_error, similarity_divergence, similarity_error
from limbeck.records import Tap


class OutputSimilarity(Comparison):
    """L = w D(S_teacher, S_student) + g (1 - cos(proj(c_student), c_teacher)).

    S = cosines between all patches z of an image's output; D is the KL of their softmaxes over each
    patch's row, at a temperature, or their mean squared error ("gram"). c is the CLS token, or the
    mean of the patches where not both networks have one; proj is linear.
    """

    Options = OutputSimilarityOptions

    def __init__(
        self, options: OutputSimilarityOptions, student: EncoderFacts, teacher: EncoderFacts | None
    ) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.set_taps((OUTPUT,), (OUTPUT,))
        self.proj: nn.Linear | None = None
        if options.global_weight:
            self.proj = nn.Linear(student.output_dim, self.teacher_facts.output_dim)

    def compare(self, student: dict[Tap, Tensor], teacher: dict[Tap, Tensor]) -> dict[str, Tensor]:
        """ "similarity" and, where it has a weight, "global"."""
        own_cls, own = summarised(student[OUTPUT], has_cls=self.keeps_cls)
        cls, patches = summarised(teacher[OUTPUT].detach(), has_cls=self.keeps_cls)
        if self.options.kind == "kl":
            apart = similarity_divergence(own, patches, self.options.temperature)
        else:
            apart = similarity_error(own, patches)
        losses = {"similarity": self.options.weight * apart}
        if self.proj is not None:
            with torch.autocast(own.device.type, enabled=False):
                said = self.proj(own_cls.to(self.proj.weight.dtype))
            losses["global"] = self.options.global_weight * cosine_error(said, cls)
        return losses
