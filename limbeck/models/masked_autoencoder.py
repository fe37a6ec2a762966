"""A whole masked autoencoder as an Encoder: the decoder's tokens are taps as any others.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; as a teacher of its decoder's
hidden states: Generic-to-Specific Distillation of Masked Autoencoders, arXiv 2302.14771.
"""

from dataclasses import replace

from torch import Tensor

from limbeck.models.encoder import Encoder, check_taps
from limbeck.models.mae import MaeDecoder
from limbeck.records import DECODER_KINDS, Features, Tap

OUTPUT = Tap("output")


class MaskedAutoencoder(Encoder):
    """An encoder and the decoder that was trained with it, which reads the final tokens.

    Only the CLS token and the patches go to the decoder. Its blocks after the last one that a tap
    needs are not run.
    """

    def __init__(self, encoder: Encoder, decoder: MaeDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.mask_token = encoder.mask_token
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
        said = self.encoder(images, ids_keep, tuple({*others, OUTPUT}), mask_token)
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
        decoder = self.decoder
        self.facts = replace(
            self.encoder.facts,
            decoder_depth=len(decoder.decoder_blocks),
            decoder_dim=decoder.mask_token.shape[-1],
        )
