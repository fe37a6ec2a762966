"""A whole masked autoencoder as an Encoder: the decoder's tokens are taps as any others.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; as a teacher of its decoder's
hidden states: Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771.
"""

import hashlib
from dataclasses import replace

from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder, check_taps
from limbeck.models.finished import weight_hash
from limbeck.models.mae import MaeDecoder
from limbeck.records import DECODER_KINDS, Features, Tap

OUTPUT = Tap("output")


class MaskedAutoencoder(Encoder):
    """An encoder and the decoder that was trained with it, which reads the final tokens.

    Only the CLS token and the patches go to the decoder. Its blocks after the last one that a tap
    needs are not run, and its final norm and pixel head, if it has them, never are.

    ``facts`` are the encoder's; "decoder" in their architecture has the decoder's shape, and the
    weight hash of their origin is of both. ``decoder_hash`` is the weight hash of the decoder's
    tensors as they were read, before positions were interpolated; that of what it has, if not
    given. Raises UserError where the decoder can't read this encoder's tokens.
    """

    def __init__(
        self, encoder: Encoder, decoder: MaeDecoder, decoder_hash: str | None = None
    ) -> None:
        super().__init__()
        _check_fit(encoder, decoder)
        self.encoder, self.decoder = encoder, decoder
        self.mask_token = encoder.mask_token
        self._decoder_hash = decoder_hash or weight_hash(decoder.state_dict())
        self._tell()

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """See ``Encoder.forward``. With a ``mask_token`` the decoder sees every place."""
        check_taps(self, taps, "encoder")
        of_decoder = [tap for tap in taps if tap.kind in DECODER_KINDS]
        if not of_decoder:
            return self.encoder(images, ids_keep, taps, mask_token)
        others = tuple(tap for tap in taps if tap not in of_decoder)
        said = self.encoder(images, ids_keep, tuple(dict.fromkeys((*others, OUTPUT))), mask_token)
        seen = None if mask_token is not None else ids_keep
        found = {tap: said.taps[tap] for tap in others}
        for tap in of_decoder:
            found[tap] = self.decoder.decode(said.taps[OUTPUT], seen, tap.block)
        return replace(said, tokens=said.tokens if OUTPUT in others else None, taps=found)

    def offered_taps(self) -> tuple[str, ...]:
        """The encoder's and the decoder's."""
        return (*self.encoder.offered_taps(), *DECODER_KINDS)

    def layer_id(self, parameter_name: str) -> int:
        """See ``Encoder.layer_id``; the decoder's count as the last block's."""
        owner, _, name = parameter_name.partition(".")
        return self.encoder.layer_id(name) if owner == "encoder" else self.facts.depth

    def set_num_heads(self, block: int, num_heads: int) -> None:
        """See ``Encoder.set_num_heads``; of the encoder."""
        self.encoder.set_num_heads(block, num_heads)
        self._tell()

    def _tell(self) -> None:
        facts, blocks = self.encoder.facts, self.decoder.decoder_blocks
        width = self.decoder.mask_token.shape[-1]
        shape = {"embed_dim": width, "depth": len(blocks), "num_heads": blocks[0].attn.num_heads}
        note = (
            f"The decoder is read, too: {len(blocks)} blocks, width {width}, "
            f"{shape['num_heads']} heads."
        )
        known = facts.origin.get("weight_hash")
        both = None if known is None else hashlib.sha256(f"{known} {self._decoder_hash}".encode())
        self.facts = replace(
            facts,
            decoder_depth=len(blocks),
            decoder_dim=width,
            architecture=facts.architecture | {"decoder": shape},
            origin=facts.origin
            | {
                "weight_hash": both and both.hexdigest(),
                "notes": [*facts.origin.get("notes", ()), note],
            },
        )


def _check_fit(encoder: Encoder, decoder: MaeDecoder) -> None:
    facts, width = encoder.facts, decoder.decoder_embed.in_features
    name = facts.architecture.get("name", "encoder")
    reads, gives = (width, *decoder.grid), (facts.output_dim, *facts.grid)
    if reads != gives:
        raise UserError(
            f"The decoder reads tokens of width {reads[0]} on a grid of {reads[1]} x {reads[2]}, "
            f"and the {name} gives width {gives[0]} on {gives[1]} x {gives[2]}; take both from one "
            "source."
        )
    if decoder.num_cls_tokens != facts.has_cls_token:
        one, other = ("decoder", name) if decoder.num_cls_tokens else (name, "decoder")
        raise UserError(
            f"The {one} has a CLS token and the {other} has none; take both from one source."
        )
