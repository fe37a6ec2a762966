"""Fakes: a tiny encoder that offers every tap, to test methods without a real network."""

import torch

from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.ops.masking import is_masked
from limbeck.records import DECODER_KINDS, LOGIT_KINDS, Features, Tap

INSIDE = (
    "block_input",
    "attention_input",
    "attention_output",
    "attention_tokens",
    "mlp_output",
    "tokens",
)


class FakeEncoder(Encoder):
    """Draws every tap from one parameter, so that gradients can be followed.

    No two kinds, nor two blocks, say the same; "output" and the logits have no block.
    """

    def __init__(
        self,
        *,
        embed_dim=8,
        depth=2,
        num_heads=2,
        num_prefix_tokens=1,
        has_dist_head=False,
        decoder_depth=0,
        seed=0,
        num_classes=3,
        origin=None,
    ):
        super().__init__()
        self._facts = dict(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=(num_heads,) * depth,
            num_prefix_tokens=num_prefix_tokens,
            has_cls_token=num_prefix_tokens > 0,
            patch_size=4,
            img_size=(8, 8),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            num_classes=num_classes,
            has_dist_head=has_dist_head,
            decoder_depth=decoder_depth,
            decoder_dim=embed_dim // 2 if decoder_depth else 0,
            architecture={"kind": "fake"},
            origin={"source": "fake", "weight_hash": "0" * 64} | (origin or {}),
        )
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(48, 3 * embed_dim, generator=generator))
        self.head = torch.nn.Linear(embed_dim, num_classes)
        if has_dist_head:
            self.head_dist = torch.nn.Linear(embed_dim, num_classes)
        self.num_calls = 0

    @property
    def facts(self):
        return EncoderFacts(**self._facts)

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        self.num_calls += 1
        facts = self.facts
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        patches = patches.flatten(2)  # [B, L, 48]
        if ids_keep is not None and mask_token is None:
            patches = patches.gather(1, ids_keep[..., None].expand(-1, -1, 48))
        prefix = patches.mean(1, keepdim=True).expand(-1, facts.num_prefix_tokens, -1)
        qkv = torch.cat([prefix, patches], 1) @ self.weight  # [B, N, 3D]
        if mask_token is not None:
            hidden = is_masked(ids_keep, patches.shape[1]).unsqueeze(-1)
            hidden = torch.nn.functional.pad(hidden, (0, 0, facts.num_prefix_tokens, 0))
            seen = qkv.where(~hidden, 0.0).mean(1, keepdim=True)  # as if by attention
            qkv = torch.where(hidden, mask_token.repeat(1, 1, 3) + seen, qkv)
        B, N, _ = qkv.shape
        tokens = qkv[..., : facts.embed_dim]
        values = {}
        for tap in taps:
            heads = tap.num_heads or facts.num_heads[tap.block % facts.depth]
            here = (1 + 0.25 * (tap.block % facts.depth)) * qkv
            q, k, v = here.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
            inside = {
                kind: here[..., : facts.embed_dim].roll(number, dims=-1)
                for number, kind in enumerate(INSIDE, 1)
            }
            values[tap] = {
                "queries": q,
                "keys": k,
                "values": v,
                "scores": q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5,
                "output": tokens,
                "decoder_tokens": self.decode(tokens, ids_keep, tap.block),
                **inside,
                **self.logits(tokens),
            }[tap.kind]
        is_wanted = not taps or Tap("output") in taps
        return Features(tokens if is_wanted else None, facts.num_prefix_tokens, (2, 2), values)

    def logits(self, tokens):
        of_class = self.head(tokens.mean(1))
        if not self.facts.has_dist_head:
            return {"logits": of_class}
        of_dist = self.head_dist(tokens[:, 1])
        mean = (of_class + of_dist) / 2
        return {"logits": mean, "class_logits": of_class, "dist_logits": of_dist}

    def decode(self, tokens, ids_keep, block):
        """The CLS token and all places of the patches, where those not kept have a mean."""
        facts = self.facts
        if not facts.decoder_depth:
            return None
        cls, patches = tokens[:, :1], tokens[:, facts.num_prefix_tokens :]
        places = patches.mean(1, keepdim=True).repeat(1, 4, 1)
        if ids_keep is not None:
            patches = places.scatter(1, ids_keep[..., None].expand_as(patches), patches)
        x = torch.cat([cls, patches] if facts.has_cls_token else [patches], 1)
        return (1 + 0.25 * (block % facts.decoder_depth)) * x[..., 1::2]

    def offered_taps(self):
        logits = LOGIT_KINDS if self.facts.has_dist_head else ("logits",)
        decoded = DECODER_KINDS if self.facts.decoder_depth else ()
        return ("queries", "keys", "values", "scores", *INSIDE, "output", *decoded, *logits)

    def layer_id(self, parameter_name):
        return 0 if parameter_name == "weight" else self.facts.depth + 1

    def set_num_heads(self, block, num_heads):
        heads = list(self._facts["num_heads"])
        heads[block] = num_heads
        self._facts["num_heads"] = tuple(heads)
