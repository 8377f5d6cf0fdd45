"""Configuration of DFlash and DSpark heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entmtp.errors import EntMTPError
from entmtp.heads.decoder_config import DecoderHeadsConfig


@dataclass(kw_only=True)
class DFlashConfig(DecoderHeadsConfig):
    """Sizes and variants of DFlash heads; their layers are as wide as the model's states.

    ``num_heads`` is the depth of the trees: the states of a block that guess.

    Attributes:
        block_size: tokens of a block: the root, and mask tokens.
        mask_token: the model's token that stands for a token not known yet.
        root_guesses: whether the state of the root itself guesses the token after it, so that a block guesses
            ``block_size`` tokens. Otherwise the state of a mask token guesses the token at its own position, one less.
        markov_rank: width of the previous token's vector in DSpark's bias of the logits; 0 without a bias.
        has_confidence: whether the heads estimate their own chance of acceptance.
        confidence_reads_token: whether that estimate also reads the previous token's vector.
    """

    model_type: ClassVar[str] = "entmtp_dflash"

    num_heads: int = 15
    num_layers: int = 5
    block_size: int = 16
    mask_token: int = 0
    root_guesses: bool = False
    markov_rank: int = 0
    has_confidence: bool = False
    confidence_reads_token: bool = False

    def __post_init__(self) -> None:
        """Checks what no single field can tell.

        Raises:
            EntMTPError: if fields contradict each other.
        """
        super().__post_init__()
        if not self.feature_layers:
            raise EntMTPError("feature_layers is empty; name the layers whose inputs the heads read")
        guesses = self.block_size - (not self.root_guesses)
        if self.num_heads != guesses or guesses < 1:
            raise EntMTPError(
                f"num_heads is {self.num_heads} but a block of {self.block_size} tokens guesses {guesses}"
            )
        if self.mask_token >= self.vocab_size:
            raise EntMTPError(f"mask_token is {self.mask_token} but the model's tokens are 0 to {self.vocab_size - 1}")
        if self.confidence_reads_token and not (self.has_confidence and self.markov_rank):
            raise EntMTPError("confidence_reads_token is true but has_confidence is false or markov_rank is 0")
