"""ASL (Li et al., 2024), Section 3.3: MAE, a second set of features, and their alignment.

The paper leaves several choices open; each is a field here, its default first, and what speaks
for the default beside it. A field of the other design, or one that another makes void, must keep
its default: a run that is named after a choice has made it.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from asl_core.recipes.optimisation import require_at_least, require_rates
from asl_core.recipes.pretraining import MaskedPretraining


@dataclass(frozen=True, kw_only=True)
class AslRecipe(MaskedPretraining):
    """ASL; optimised as MAE is."""

    may_be_fp16: ClassVar[bool] = True

    method: Literal["asl"] = "asl"
    precision: Literal["bf16", "fp32", "tf32", "fp16"] = "fp16"
    """That of MAE's code, which the paper builds on. In bf16 AEE's alignment gets .55 to .78 of its
    gradient, turned by 27 to 40 degrees; in fp16 .91 to .98 of it, turned by 6 to 8."""
    design: Literal["aee", "dle"] = "aee"
    """aee: a Transformer layer after the encoder; dle: dropout in the linear embedding."""
    mae_on: Literal["both_mean", "both_sum", "ori", "aug"] = "both_mean"
    """Which branch the pixel loss reads. Without alignment the second branch of Table 7 (b), (d)
    must be trained by something, hence both; the mean keeps the weight 1 of Eq. 11. aug: the
    augmented branch alone, if pred_ori is but the label that the model makes for itself."""
    share_decoder: bool = True
    """One decoder for both branches: the paper speaks of "the decoder module"."""
    sem_weight: float = 1.0
    """Weight of the alignment loss, Eq. 11; 0 switches it off (Table 7 b, d)."""
    sem_warmup_epochs: float = 0.0
    """The weight grows linearly from 0 over so many epochs, step by step. Ours, not the paper's:
    predictions that still say nothing need no alignment, which then has nothing to collapse."""
    sem_type: Literal["l1", "cosine"] = "l1"
    """Distance of Eq. 9; cosine is the comparison of Section 4.6."""
    sem_sign: Literal["alignment", "random"] = "alignment"
    """random: a control, ours. The gradient keeps l1's size in every value, its sign is drawn;
    what is gained with it is not gained by alignment. The loss that is logged stays l1's."""
    sem_patches: Literal["masked", "all"] = "masked"
    """Which patches are aligned: Eq. 10 takes them from the removed ones."""
    sem_reduction: Literal["mean", "sum"] = "mean"
    """Norm of Eq. 9 over the values of a patch; a sum over 768 would drown the pixel loss."""
    sem_space: Literal["pixel", "decoder_norm"] = "pixel"
    """What is aligned: predictions, as Section 3.3 calls them, or the decoder's normalised
    output before the prediction head."""
    sem_precision: Literal["as_rest", "full"] = "as_rest"
    """In what all that AEE's branches do not share is computed: final norm, extra layer, decoder,
    head. Their predictions differ by less than bfloat16 resolves, and no smaller part gives the
    alignment its gradient back (docs/asl_meaning.md). full: in float32; at ViT-S that takes 1.6
    times the step of bf16, hence not the default: `precision` is fp16."""
    cls_align: Literal["off", "decoder_pred", "decoder_norm", "encoder"] = "off"
    """The ablation of Section 4.6 that aligns [cls] too, with the same distance and weight: after
    decoder and prediction head, after the decoder's norm, or after the encoder. The table's row is
    `encoder`: the paper calls it "global contrastive learning", and what contrastive learning
    compares is the encoder's [cls]. The decoder's is read by nobody; aligned there, it moves the
    encoder a tenth as far."""
    aee_depth: int = 1
    """Layers after the encoder; the text has "a Transformer layer"."""
    aee_pos: Literal["post_norm", "pre_norm"] = "post_norm"
    """Where they attach: behind the encoder's final norm, the literal reading of "after the
    encoder", or before it, the norm then being applied to both branches."""
    aee_norm: bool = False
    """Whether a norm of its own follows them."""
    aee_layer: Literal["block", "vaswani"] = "block"
    """block: the encoder's own kind, norms before its parts, GELU. vaswani: as in "Attention is all
    you need", which the paper cites for its "Transformer layer": norms behind the sums, ReLU,
    dropout. There no path is left unnormalised, so it is less easily the identity."""
    aee_dropout: float = 0.1
    """Dropout rate of the layer of Vaswani et al.; theirs."""
    dle_rate: float = 0.1
    """Dropout rate of dle; SimCSE's value, the paper gives none."""
    dle_unit: Literal["value", "patch"] = "value"
    """What is dropped: single values, as SimCSE's dropout does, or the whole embedding of a patch,
    which "patch-level augmentation" may mean."""
    dle_where: Literal["pre_pos", "post_pos"] = "pre_pos"
    """Dropout before the positions are added, "in the linear embedding", or after."""
    dle_both: bool = True
    """Whether both branches are noisy, as in SimCSE, or fea_aug alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rates(self, "dle_rate", "aee_dropout")
        require_at_least(self, 0, "sem_weight", "sem_warmup_epochs")
        require_at_least(self, 1, "aee_depth")
        self._refuse_void_fields()

    def _refuse_void_fields(self) -> None:
        other = "dle_" if self.design == "aee" else "aee_"
        self._refuse_where(True, f"design {self.design}", other)
        self._refuse_where(self.sem_weight == 0, "sem_weight 0", "sem_")
        self._refuse_where(self.design == "dle" and self.dle_rate == 0, "dle_rate 0", "dle_")
        if self.aee_layer == "block" and self.aee_dropout != AslRecipe.aee_dropout:
            raise ValueError("aee_dropout has no effect with aee_layer block; remove it")
        if self.aee_layer == "vaswani" and self.aee_norm:
            raise ValueError("aee_layer vaswani ends in a norm of its own; drop aee_norm")
        if self.sem_warmup_epochs > self.epochs:
            raise ValueError(
                f"sem_warmup_epochs {self.sem_warmup_epochs} exceeds epochs {self.epochs}; "
                "shorten the warm-up"
            )
        if self.sem_sign == "random" and (self.sem_type == "cosine" or self.cls_align != "off"):
            raise ValueError(
                "sem_sign random is a control of l1 on patches; drop sem_type and cls_align"
            )
        if self.sem_weight == 0 and self.mae_on == "ori":
            raise ValueError("mae_on ori with sem_weight 0 is MAE; use method mae")
        if self.sem_weight == 0 and self.cls_align != "off":
            raise ValueError("cls_align has no effect with sem_weight 0; use off")
        if self.sem_precision == "full" and self.design == "dle":
            raise ValueError(
                "design dle shares too little between its branches for sem_precision full; "
                "use precision fp32"
            )
        if self.sem_precision == "full" and self.precision in ("fp32", "tf32"):
            raise ValueError(
                f"sem_precision full changes nothing with precision {self.precision}; remove it"
            )
        if self.sem_type == "cosine" and self.sem_reduction == "sum":
            raise ValueError("sem_reduction has no effect with sem_type cosine; remove it")
        if self.aee_norm and self.aee_pos == "pre_norm":
            raise ValueError("aee_pos pre_norm already ends in the encoder's norm; drop aee_norm")
        if not self.share_decoder and "decoder_norm" in (self.sem_space, self.cls_align):
            raise ValueError(
                "two decoders have no common space before their heads; "
                "use share_decoder true or align predictions"
            )

    def _refuse_where(self, condition: bool, reason: str, prefix: str) -> None:
        """Refuse fields with a prefix that are not the reason itself and not at their default."""
        for field in fields(self):
            named = field.name.startswith(prefix) and field.name not in reason
            if condition and named and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} has no effect with {reason}; remove it")
