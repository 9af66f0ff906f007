"""Every method so small that its one epoch, five steps of the fixture `icons`, takes a second."""

from typing import Any

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.beit import BeitRecipe
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.models import Vit
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.rmae import RmaeRecipe
from asl_core.recipes.sim import SimRecipe
from asl_core.recipes.splitmask import SplitMaskRecipe
from asl_core.recipes.supervised import SupervisedRecipe

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
SHORT: dict[str, Any] = {
    "dataset": "icons", "model": TINY, "epochs": 1, "batch_size": 8, "lr": 1e-3,
    "warmup_epochs": 0, "precision": "fp32", "seed": 1,
}  # fmt: skip
HEAD: dict[str, Any] = {
    "out_dim": 24, "head_hidden_dim": 16, "head_bottleneck_dim": 8, "drop_path": 0.2,
    "freeze_last_layer": 0, "warmup_teacher_temp_epochs": 0,
}  # fmt: skip
MAE, ASL = MaeRecipe(**SHORT), AslRecipe(**SHORT)
OTHERS: dict[str, Pretraining] = {
    "ccmim": CcMimRecipe(**SHORT, contrast_weight=1.0),
    "cmae": CmaeRecipe(**SHORT, projector_hidden=24, projector_dim=8, teacher_momentum=0.9),
    "rmae": RmaeRecipe(
        **SHORT, num_regions=3, region_dim=8, region_num_heads=2, pixel_decoder_depth=1
    ),
    "sim": SimRecipe(**SHORT, predictor_embed_dim=16, predictor_num_heads=2, predictor_depth=1),
    "beit": BeitRecipe(**SHORT, tokenizer="kmeans", drop_path=0.2),
    "cae": CaeRecipe(
        **SHORT, tokenizer="kmeans", drop_path=0.2, regressor_depth=1, decoder_depth=1
    ),
    "splitmask": SplitMaskRecipe(**SHORT, tokenizer="kmeans", drop_path=0.2),
    "dino": DinoRecipe(**SHORT, **HEAD, local_crops=2, local_size=8),
    "ibot": IbotRecipe(**SHORT, **HEAD, shared_head=False),
    "mocov3": MocoV3Recipe(**SHORT, projector_hidden=24, projector_dim=8, teacher_momentum=0.9),
    "supervised": SupervisedRecipe(**SHORT, drop_path=0.2),
}
