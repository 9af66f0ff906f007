"""Our methods beside their official code, where checkouts are at hand: ASL_ORACLES names a folder.

In it `<owner>+<name>`, checked out at the commit that each test names. The official code runs on
today's libraries with stand-ins for what it only logs with; it is called, none of it is here.
"""

import importlib
import importlib.util
import os
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from code_equations import BrightnessTokenizer
from PIL import Image
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from asl_core.data.block_masks import block_mask
from asl_core.data.pretraining import pretrain_transform
from asl_core.data.region_maps import draw_regions
from asl_core.data.samples import Sample
from asl_core.data.segmenting import segment
from asl_core.engine.optimizer import build_optimizer, build_schedules, no_decay_groups
from asl_core.methods.beit import MaskedCodeModel
from asl_core.methods.cae import ContextAutoencoder
from asl_core.methods.ccmim import ContextContrastiveAutoencoder
from asl_core.methods.cmae import ContrastiveMaskedAutoencoder
from asl_core.methods.dino import SelfDistillation
from asl_core.methods.ibot import OnlineTokenizer
from asl_core.methods.mocov3 import MomentumContrast
from asl_core.methods.rmae import RegionMaskedAutoencoder
from asl_core.methods.sim import SiameseImageModel
from asl_core.modules.masking import block_grid_mask, mask_of, random_mask
from asl_core.modules.positions import relative_positions
from asl_core.protocol import RunLength
from asl_core.recipes.beit import BeitRecipe
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.datasets import Regions
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.models import Vit
from asl_core.recipes.rmae import RmaeRecipe
from asl_core.recipes.sim import SimRecipe
from asl_core.recipes.views import View, ViewPlan

# read when the file is: the tests hide such variables from each other
ORACLES = os.environ.get("ASL_ORACLES")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        ORACLES is None, reason="set ASL_ORACLES to a folder of checkouts of the official code"
    ),
]

Parity = Callable[[str, Tensor, Tensor, float], None]
VIT = Vit(
    image_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4,
    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2,
)  # fmt: skip
HALF, UNIT = (0.5,) * 3, (0.25,) * 3
COMMON: dict[str, Any] = {
    "dataset": "none", "model": VIT, "epochs": 1, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32",
}  # fmt: skip
HEAD: dict[str, Any] = {"out_dim": 24, "head_hidden_dim": 20, "head_bottleneck_dim": 8}


THEIRS = {
    "utils", "util", "models", "models_vit", "models_sim", "loader", "vision_transformer",
    "main_dino", "main_ibot", "basic_module", "models_ccmim", "cmae", "mmengine", "mmcv",
    "main_moco", "moco", "vits", "pretrain", "modeling_pretrain", "modeling_finetune",
    "modeling_discrete_vae", "masking_generator", "optim_factory", "dall_e", "furnace",
}  # fmt: skip
"""Names under which their modules are imported."""


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one: the official losses gather and reduce."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """Import modules of a checkout, with what they need of older libraries."""
    # another checkout's modules have the same names
    for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
        monkeypatch.delitem(sys.modules, name)
    stand_ins = {
        "turtle": {"update": None},
        "torch._six": {"inf": float("inf"), "string_classes": (str,)},
        "tensorboardX": {"SummaryWriter": None},
        "torch.utils.tensorboard": {"SummaryWriter": None},
        "timm.models.layers.helpers": {"to_2tuple": to_2tuple},
        "timm.optim.novograd": {"NovoGrad": None}, "timm.optim.nadam": {"Nadam": None},
        "timm.optim.radam": {"RAdam": None}, "einops": {"rearrange": None},
        "evaluation": {}, "evaluation.unsupervised": {},
        "evaluation.unsupervised.unsup_cls": {"eval_pred": None},
    }  # fmt: skip
    for name, content in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.setattr(np, "int", int, raising=False)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)

    def load(repository: str, *names: str) -> list[Any]:
        assert ORACLES is not None
        folder = Path(ORACLES) / repository
        assert folder.is_dir(), f"{folder} is missing; check it out there"
        monkeypatch.syspath_prepend(str(folder))
        return [importlib.import_module(name) for name in names]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield load
    for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
        del sys.modules[name]


def shaken(module: nn.Module) -> nn.Module:
    """In float64, every trained number random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, q in module.named_parameters():
            if "pos_embed" not in name:
                q.add_(0.05 * torch.randn(q.shape, generator=generator))
    return module.double()


def take_over(ours: nn.Module, state: dict[str, Tensor]) -> None:
    """Give our method the official weights; what has no name there stays."""
    result = ours.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    known = ("pos_embed", "norm.weight", "norm.bias", "center")
    assert all(key.endswith(known) for key in result.missing_keys), result.missing_keys


def compare(
    name: str,
    parity: Parity,
    ours: nn.Module,
    theirs: nn.Module,
    our_name: Callable[[str], str],
    losses: tuple[Tensor, Tensor],
    most: float = 1e-10,
) -> None:
    """Compare the losses, and the gradients of all that both train."""
    parity(f"official {name}, loss", losses[0].detach(), losses[1].detach(), most)
    for loss in losses:
        loss.backward()
    compared = 0
    for key, q in theirs.named_parameters():
        if q.grad is not None and q.requires_grad:
            grad = ours.get_parameter(our_name(key)).grad
            assert grad is not None, key
            parity(f"official {name}, gradients", grad, q.grad.reshape(grad.shape), most)
            compared += 1
    assert compared > 10


def masked_name(name: str) -> str:
    """Where a parameter of the official ccMIM is in ours."""
    if name == "mask_token" or name.startswith("decoder_"):
        return "decoder." + name.removeprefix("decoder_")
    return name if name.startswith("projector") else "encoder." + name


@pytest.mark.usefixtures("alone")
def test_ccmim(official: Any, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    [models] = official("Sherrylone+ccMIM", "models_ccmim")  # fdc90963
    torch.manual_seed(0)
    theirs = shaken(
        models.AttnMaskedAutoencoderViT(
            img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32,
            decoder_depth=2, decoder_num_heads=2, norm_layer=partial(nn.LayerNorm, eps=1e-6),
            norm_pix_loss=True, args=SimpleNamespace(random=False, contrastive=True),
        )
    )  # fmt: skip
    ours = ContextContrastiveAutoencoder(CcMimRecipe(**COMMON), HALF, UNIT).double()
    state = {masked_name(k): v for k, v in theirs.state_dict().items()}
    with torch.no_grad():
        ours.decoder.pos_embed.copy_(state.pop("decoder.pos_embed"))
    take_over(ours, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    noise = torch.rand(4, 64, dtype=torch.float64)
    mask = ours.split(images, noise)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    align, reconstruct, _, removed = theirs(images, mask_ratio=0.75)
    assert torch.equal(mask.removed, removed.bool())
    losses = (ours.step(images, mask).loss, reconstruct + 0.1 * align)
    compare("ccMIM", parity, ours, theirs, masked_name, losses)


SIM_NAMES = (
    ("mm_patch_embed", "teacher.encoder.patch_embed"),
    ("mm_cls_token", "teacher.encoder.cls_token"),
    ("mm_blocks", "teacher.encoder.blocks"), ("mm_decoder_embed", "teacher.embed"),
    ("mm_projector_decoder_blocks", "teacher.projector"), ("decoder_pos_embed", "pos_embed"),
    ("decoder_pos_mlp", "relative"), ("decoder_embed", "embed"), ("decoder_pred", "pred"),
    ("projector_decoder_blocks", "projector"), ("predictor_decoder_blocks", "predictor"),
    ("mask_token", "mask_token"),
)  # fmt: skip


def sim_name(name: str) -> str:
    name = name.replace(".bn.", ".")
    for theirs, ours in SIM_NAMES:
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return "encoder." + name


@pytest.mark.usefixtures("alone")
def test_sim(official: Any, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    models, positions = official(
        "OpenGVLab+Siamese-Image-Modeling", "models_sim", "util.pos_embed"
    )  # bbdec308
    torch.manual_seed(0)
    arguments = SimpleNamespace(
        decoder_embed_dim=32, use_abs_pos_emb=True, drop_path_rate=0.0, init_values=None,
        loss_type="sim", projector_depth=2, use_proj_ln=False, predictor_depth=3, use_pred_ln=False,
        online_ln=False, train_patch_embed=False, with_blockwise_mask=True, neg_weight=0.02,
    )  # fmt: skip
    theirs = shaken(
        models.SiameseIMViT(
            img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, decoder_num_heads=2,
            norm_layer=partial(models.LayerNorm, eps=1e-6), args=arguments,
        )
    )  # fmt: skip
    recipe = SimRecipe(**COMMON, predictor_embed_dim=32, predictor_depth=3)
    ours = SiameseImageModel(recipe, HALF, UNIT).double()
    state = {
        sim_name(k): v for k, v in theirs.state_dict().items()
        if k != "mm_mask_token" and "num_batches" not in k
    }  # fmt: skip
    with torch.no_grad():
        ours.pos_embed.copy_(state.pop("pos_embed"))  # theirs have the row first
        ours.teacher["encoder"].pos_embed.copy_(state["encoder.pos_embed"])
    take_over(ours, state)
    boxes = torch.tensor([[[3.0, 5, 20, 16, 0, 48], [7, 2, 30, 24, f, 48]] for f in (0, 1, 1)])
    first, second = boxes.unbind(1)
    flip = (first[:, 4] != second[:, 4]).double()
    relation = (
        (second[:, 0] - first[:, 0]) / first[:, 2], (second[:, 1] - first[:, 1]) / first[:, 3],
        second[:, 2] / first[:, 2], second[:, 3] / first[:, 3], flip,
        (first[:, 5] - first[:, 1] - second[:, 1]) / first[:, 3],
    )  # fmt: skip
    relation = tuple(number.double() for number in relation)
    # the official code computes in float32 wherever it stands
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    features = positions.get_2d_sincos_pos_embed_relative(*relation, 32, 8)
    own = relative_positions(boxes, 32, 8).double()
    parity("official SIM, relative positions (float32)", own, features.double(), 2e-5)
    removed = torch.rand(3, 64).argsort(1) < recipe.num_removed
    images, others = torch.randn(2, 3, 3, 64, 64, dtype=torch.float64)
    loss, _ = theirs(images, others, relation, 0.99, False, mask=removed)
    step = ours.step(images, others, features, mask_of(removed, recipe.num_removed))
    compare("SIM", parity, ours, theirs, sim_name, (step.loss, loss))


def head_name(name: str) -> str:
    """Where a parameter of the official head is in ours."""
    if name.startswith("last_layer"):
        where = "patch_prototypes" if name.startswith("last_layer2") else "prototypes"
        return f"{where}.{'gain' if name.endswith('weight_g') else 'direction'}"
    return "head.layers." + name.removeprefix("mlp.")


def student_name(name: str) -> str:
    if name == "backbone.masked_embed":
        return "hidden_embed"
    kind, _, rest = name.partition(".")
    return f"encoder.{rest}" if kind == "backbone" else head_name(rest)


def official_pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    student, teacher = shaken(build()), build().double()
    with torch.no_grad():
        for q in teacher.parameters():
            q.add_(0.05 * torch.randn(q.shape, generator=torch.Generator().manual_seed(q.numel())))
    return student, teacher


def distilled(ours: Any, student: nn.Module, teacher: nn.Module) -> None:
    """Give our method the weights of both."""
    state = {student_name(k): v for k, v in student.state_dict().items()}
    known = ours.state_dict()
    for key, value in teacher.state_dict().items():
        name = f"teacher.{student_name(key)}"
        if name in known:
            state[name] = value
    take_over(ours, state)


@pytest.mark.usefixtures("alone")
def test_dino(official: Any, parity: Parity) -> None:
    main, vits, utils = official(
        "facebookresearch+dino", "main_dino", "vision_transformer", "utils"
    )  # 7c446df5
    torch.manual_seed(0)

    def build() -> nn.Module:
        backbone = vits.VisionTransformer(
            img_size=[64], patch_size=8, embed_dim=48, depth=2, num_heads=4, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        head = vits.DINOHead(48, 24, norm_last_layer=False, hidden_dim=20, bottleneck_dim=8)
        return utils.MultiCropWrapper(backbone, head)

    student, teacher = official_pair(build)
    recipe = DinoRecipe(**COMMON, **HEAD, norm_last_layer=False, local_crops=3, local_size=24)
    ours = SelfDistillation(recipe, HALF, UNIT).double()
    distilled(ours, student, teacher)
    loss = main.DINOLoss(24, 5, 0.04, 0.04, 0, 1).double()
    center = 0.1 * torch.randn(1, 24, dtype=torch.float64)
    loss.center.copy_(center)
    ours.center.copy_(center)
    large = [torch.randn(2, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    small = [torch.randn(2, 3, 24, 24, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        seen = teacher(large)
    theirs = loss(student([*large, *small]), seen, 0)
    temperature = torch.tensor(0.04, dtype=torch.float64)
    step = ours.step([torch.cat(large), torch.cat(small)], [None, None], temperature)
    compare("DINO", parity, ours, student, student_name, (step.loss, theirs))
    ours.take_statistics(step.statistics)
    parity("official DINO, centre", ours.center, loss.center, 1e-12)


@pytest.mark.usefixtures("alone")
def test_ibot(official: Any, parity: Parity) -> None:
    main, models, heads = official(
        "bytedance+ibot", "main_ibot", "models", "models.head"
    )  # da316d82
    torch.manual_seed(0)

    def build(masked: bool, shared: bool) -> nn.Module:
        backbone = models.VisionTransformer(
            img_size=[64], patch_size=8, embed_dim=48, depth=2, num_heads=4, qkv_bias=True,
            return_all_tokens=True, masked_im_modeling=masked,
        )  # fmt: skip
        backbone.head = nn.Identity()
        head = heads.iBOTHead(
            48, 24, patch_out_dim=24, norm_last_layer=False, hidden_dim=20, bottleneck_dim=8,
            shared_head=shared,
        )  # fmt: skip
        return nn.ModuleDict({"backbone": backbone, "head": head})

    student = shaken(build(True, False))
    _, teacher = official_pair(lambda: build(False, True))
    recipe = IbotRecipe(**COMMON, **HEAD, norm_last_layer=False, shared_head=False)
    ours = OnlineTokenizer(recipe, HALF, UNIT).double()
    distilled(ours, student, teacher)
    loss = main.iBOTLoss(24, 24, 2, 0, 0.05, 0.05, 0.06, 0.06, 0, 1).double()
    for name, mine in (("center", ours.center), ("center2", ours.patch_center)):
        value = 0.1 * torch.randn(mine.shape, dtype=torch.float64)
        getattr(loss, name).copy_(value)
        mine.copy_(value)
    crops = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    removed = torch.rand(4, 64) < 0.3
    removed[1] = False
    with torch.no_grad():
        seen = teacher["head"](teacher["backbone"](crops))
    masks = removed.reshape(4, 8, 8)
    made = student["head"](student["backbone"](crops, mask=masks))
    theirs = loss(made, seen, None, masks.chunk(2), 0)["loss"]
    step = ours.step(
        crops, removed, None, None, None, torch.tensor([0.05, 0.06], dtype=torch.float64)
    )
    compare("iBOT", parity, ours, student, student_name, (step.loss, theirs))
    ours.take_statistics(step.statistics)
    parity("official iBOT, centres", ours.center, loss.center, 1e-12)
    parity("official iBOT, centres", ours.patch_center, loss.center2, 1e-12)


MOCO_NAMES = (
    ("base_encoder.head", "projector"), ("base_encoder", "encoder"),
    ("momentum_encoder.head", "teacher.projector"), ("momentum_encoder", "teacher.encoder"),
)  # fmt: skip


def moco_name(name: str) -> str:
    for theirs, ours in MOCO_NAMES:
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name


@pytest.mark.usefixtures("alone")
def test_mocov3(official: Any, parity: Parity) -> None:
    """First weights, then five steps, the first three of the warm-up; an epoch is a step."""
    vits, builder, main = official(
        "facebookresearch+moco-v3", "vits", "moco.builder", "main_moco"
    )  # c349e6e2

    class OneToken(vits.VisionTransformerMoCo):
        num_tokens = 1  # timm's own until it was renamed

    torch.manual_seed(0)
    encoder = partial(
        OneToken, img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), stop_grad_conv1=True,
    )  # fmt: skip
    theirs = builder.MoCo_ViT(encoder, 8, 20, 0.2)
    recipe = MocoV3Recipe(
        **{**COMMON, "epochs": 5, "warmup_epochs": 3}, lr=1e-2, projector_hidden=20,
        projector_dim=8,
    )  # fmt: skip
    ours = MomentumContrast(recipe, HALF, UNIT)
    for key, q in theirs.named_parameters():
        mine = ours.get_parameter(moco_name(key))
        assert mine.requires_grad == q.requires_grad, key
        if key.endswith("pos_embed"):
            parity("official MoCo v3, positions (float32)", mine.detach(), q.detach(), 1e-6)
        elif not key.endswith("cls_token"):  # normal; others are uniform, or constants
            largest, expected = float(mine.detach().abs().max()), float(q.detach().abs().max())
            assert largest == pytest.approx(expected, rel=0.05), key
    ours = ours.double()
    take_over(ours, {moco_name(k): v for k, v in shaken(theirs).state_dict().items()})
    optimizers = (
        torch.optim.AdamW(theirs.parameters(), recipe.peak_lr, weight_decay=recipe.weight_decay),
        build_optimizer(ours.parameter_groups(), recipe),
    )
    (schedule,) = build_schedules(optimizers[1], recipe, 1, 5)
    arguments = SimpleNamespace(lr=1e-2, warmup_epochs=3, epochs=5, moco_m=0.99)
    ours.set_run_length(RunLength(1, 5))
    ours.after_step(0)  # this teacher is not its student, so that it follows in the first step too
    for epoch in range(5):
        images = torch.randn(2, 4, 3, 64, 64, dtype=torch.float64)
        main.adjust_learning_rate(optimizers[0], epoch, arguments)
        schedule.step_update(epoch)
        loss = theirs(*images, main.adjust_moco_momentum(epoch, arguments))
        step = ours.step(*images)
        if epoch == 0:
            compare("MoCo v3", parity, ours, theirs, moco_name, (step.loss, loss))
        else:
            parity("official MoCo v3, later losses", step.loss.detach(), loss.detach(), 1e-8)
            (step.loss + loss).backward()
        for key, q in theirs.momentum_encoder.named_parameters():
            own = ours.get_parameter(moco_name(f"momentum_encoder.{key}"))
            parity("official MoCo v3, teacher", own, q, 1e-8)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ours.after_step(epoch + 1)


RMAE_NAMES = (
    ("decoder_", "decoder."), ("mask_token", "decoder.mask_token"),
    ("region_cross_", "pixel_decoder."), ("region_dec_norm", "pixel_decoder.norm"),
    ("region_dec_blocks.0.proj", "pixel_decoder.pred"),
    ("region_dec_blocks.0.norm3", "region_decoder.norm2"),
    ("region_dec_blocks.0", "region_decoder"), ("region_pred.1", "region_decoder.pred"),
    ("region_patch_embed.proj", "region_encoder.embed"), ("region_pos", "region_encoder.pos"),
    ("region_enc_", "region_encoder."), ("region_proj.0", "region_encoder.norm"),
    ("region_proj.1", "region_encoder.proj"),
)  # fmt: skip


def rmae_name(name: str) -> str:
    for theirs, ours in RMAE_NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return "encoder." + name


@pytest.fixture
def official_rmae(official: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Import modules of R-MAE without what its package does when it is imported itself."""
    assert ORACLES is not None
    folder = Path(ORACLES) / "facebookresearch+r-mae"  # f92b3c43
    package, vision = types.ModuleType("pretrain"), types.ModuleType("cv2")
    package.__path__ = [str(folder / "pretrain")]
    monkeypatch.setitem(sys.modules, "pretrain", package)
    monkeypatch.setitem(sys.modules, "cv2", vision)
    return partial(official, folder.name)


def test_rmae(official_rmae: Any, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    rmae, modeling = official_rmae("pretrain.module.rmae", "pretrain.utils.modeling")
    torch.manual_seed(0)
    theirs = rmae.RegionQueryRMAE(
        img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32,
        decoder_depth=2, decoder_num_heads=2, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True, num_region=5, region_enc_dim=32, region_enc_num_heads=4,
        region_dec_dim=32, region_dec_num_heads=4, region_cross_layer=3,
    )  # fmt: skip
    recipe = RmaeRecipe(
        **COMMON, num_regions=5, region_dim=32, region_num_heads=4, pixel_decoder_depth=3
    )
    ours = RegionMaskedAutoencoder(recipe, HALF, UNIT)
    spared = {id(q) for q in modeling.get_mae_parameters(theirs, None, 0.0, 0.0)[1]["params"]}
    groups = {id(q): g["weight_decay"] for g in no_decay_groups(ours, recipe) for q in g["params"]}
    for key, q in theirs.named_parameters():
        if not q.requires_grad:
            continue
        mine = ours.get_parameter(rmae_name(key))
        assert groups[id(mine)] == (0.0 if id(q) in spared else 0.05), key
        if "token" not in key:  # normal; others are uniform, or constants
            largest, expected = float(mine.detach().abs().max()), float(q.detach().abs().max())
            assert largest == pytest.approx(expected, rel=0.2), key  # of 32 numbers at least
    ours = ours.double()
    state = {rmae_name(k): v for k, v in shaken(theirs).state_dict().items()}
    with torch.no_grad():
        for module in (ours.decoder, ours.pixel_decoder, ours.region_encoder):
            name = next(n for n, m in ours.named_modules() if m is module) + ".pos_embed"
            positions = state.pop(name)
            parity("official R-MAE, positions (float32)", module.pos_embed, positions, 1e-6)
            module.pos_embed.copy_(positions)
    embed = "region_encoder.embed.weight"
    take_over(ours, {**state, embed: state[embed].flatten(1)})
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    regions = torch.rand(4, 5, 64, 64) < 0.3
    noise = torch.rand(4, 64, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    loss, (pixels, _), (mae_loss, map_loss), _ = theirs(images, 0.75, regions.double())
    mask = random_mask(noise, 0.75)
    step = ours.step(images, mask, regions)
    removed = mask.ids_removed[..., None].expand(-1, -1, 192)
    found = ours.predictions(images, mask)["ori"].detach()
    parity("official R-MAE, pixels", found, pixels.detach().gather(1, removed), 1e-10)
    parity("official R-MAE, L_MAE", step.terms["loss_mae"].detach(), mae_loss.detach(), 1e-10)
    parity("official R-MAE, L_reg", step.terms["loss_regions"].detach(), map_loss.detach(), 1e-10)
    compare("R-MAE", parity, ours, theirs, rmae_name, (step.loss, loss))


def test_regions_of_rmae(official_rmae: Any) -> None:
    """Maps of a photograph; cropped, resized, mirrored, and drawn from with the same numbers."""
    names = ("pretrain.dataset.processor.functional", "pretrain.dataset.pretrain")
    functional, pretraining = official_rmae(*names)
    assert ORACLES is not None
    file = Path(ORACLES) / "facebookresearch+r-mae/tools/preprocess/create_fh_mask_for_coco.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    preprocess = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preprocess)
    coarse = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    image = (nn.functional.interpolate(coarse, (90, 120), mode="bicubic")[0] * 255).clamp(0, 255)
    image = image.byte()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    scales = (50, 100, 150)
    expected = preprocess.compute_fh_segmentation(pixels, scales, scales)
    maps = segment(image, Regions(scales=scales))
    assert np.array_equal(maps, expected)
    settings = SimpleNamespace(
        mask_type="fh", rmae_sampling=True, filter_small_patches=False,
        region_sample_type="random", num_region=8,
    )  # fmt: skip
    plan, flips = ViewPlan(views=(View(size=32),), boxes=True, regions=8), set()
    for seed in range(12):
        torch.manual_seed(seed)
        item = pretrain_transform(plan)(Sample(0, 0, image, regions=torch.from_numpy(maps)))
        top, left, height, width, flipped, whole = (int(number) for number in item.boxes[0])
        sample = {"image": Image.fromarray(pixels)}
        target = {"masks": torch.from_numpy(expected)}
        box = (top, whole - left - width if flipped else left, height, width)
        sample, target = functional.crop(sample, target, box)
        sample, target = functional.resize(sample, target, [32, 32], interpolation=3)
        if flipped:
            sample, target = functional.hflip(sample, target)
        flips.add(flipped)
        cropped = target["masks"]
        segments = [each == number for each in cropped for number in each.unique()]
        torch.manual_seed(seed)
        ours = draw_regions(cropped, 8)
        torch.manual_seed(seed)
        sample, _ = pretraining.PretrainWithMask._process_mask(settings, sample, target)
        assert torch.equal(ours, sample["region"].bool())
        for region in item.regions:
            assert any(torch.equal(region, other) for other in segments)
    assert flips == {0, 1}


BEIT_NAMES = (
    ("lm_head", "head"), ("mask_token", "mask_token"),
    ("rel_pos_bias.relative_position_bias_table", "encoder.relative_position_bias.table"),
)  # fmt: skip


def block_name(name: str) -> str:
    """Where a parameter of an official block of BEiT or CAE is in ours."""
    name = re.sub(r"\.([qv]_bias)$", r".qkv.\1", name)
    return re.sub(r"\.gamma_([12])(_cross)?$", r".ls\1.gamma", name)


def beit_name(name: str) -> str:
    for theirs, ours in BEIT_NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return "encoder." + block_name(name)


def same_spread(ours: nn.Module, theirs: nn.Module, our_name: Callable[[str], str]) -> None:
    """Compare how far the largest of each tensor's first weights lies: none is unbounded."""
    for key, q in theirs.named_parameters():
        largest, expected = (float(x.detach().abs().max()) for x in
                             (ours.get_parameter(our_name(key)), q))  # fmt: skip
        assert largest == pytest.approx(expected, rel=0.05), key


def test_beit(official: Any, parity: Parity) -> None:
    """First weights, loss and gradients, masks with the same numbers, schedule, decay."""
    modeling, masking, optimisation, utils = official(
        "microsoft+unilm/beit", "modeling_pretrain", "masking_generator", "optim_factory", "utils"
    )  # 768a3c87
    torch.manual_seed(0)
    theirs = modeling.VisionTransformerForMaskedImageModeling(
        img_size=64, patch_size=8, vocab_size=24, embed_dim=48, depth=2, num_heads=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.1, use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
    )  # fmt: skip
    recipe = BeitRecipe(**{**COMMON, "epochs": 5, "warmup_epochs": 3, "tokenizer": "kmeans"})
    ours = MaskedCodeModel(recipe, HALF, UNIT, BrightnessTokenizer(24, 8))
    same_spread(ours, theirs, beit_name)
    groups = optimisation.get_parameter_groups(theirs, 0.05, theirs.no_weight_decay())
    expected = {id(q): group["weight_decay"] for group in groups for q in group["params"]}
    decays = {id(q): g["weight_decay"] for g in ours.parameter_groups() for q in g["params"]}
    for key, q in theirs.named_parameters():
        assert decays[id(ours.get_parameter(beit_name(key)))] == expected[id(q)], key
    (schedule,) = build_schedules(build_optimizer(ours.parameter_groups(), recipe), recipe, 4, 20)
    rates = utils.cosine_scheduler(recipe.peak_lr, 1e-5, 5, 4, warmup_epochs=3)
    for step, rate in enumerate(rates):
        assert schedule._get_lr(step)[0] == pytest.approx(rate, rel=1e-12)

    ours = ours.double()
    table = "encoder.relative_position_bias.table"
    state = {beit_name(k): v for k, v in shaken(theirs).state_dict().items() if "index" not in k}
    state["mask_token"] = state["mask_token"][0]
    take_over(ours, {**state, table: state[table].T})
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    removed, codes = torch.rand(4, 64) < 0.3, torch.randint(0, 24, (4, 64))
    removed &= removed.cumsum(1) <= recipe.num_removed
    loss = nn.functional.cross_entropy(theirs(images, removed), codes[removed])
    step = ours.step(images, removed, removed.sum().double(), codes, None)
    found = theirs.get_parameter("rel_pos_bias.relative_position_bias_table")
    gradients = [torch.autograd.grad(x, q, retain_graph=True)[0] for x, q in
                 ((step.loss, ours.get_parameter(table)), (loss, found))]  # fmt: skip
    parity("official BEiT, gradients", gradients[0], gradients[1].T, 1e-10)
    found.requires_grad_(False)  # the other way round than ours, and compared
    compare("BEiT", parity, ours, theirs, beit_name, (step.loss, loss))

    for side, hidden, smallest in ((14, 75, 16), (8, 25, 5)):
        recipe = BeitRecipe(
            dataset="none", model=Vit(image_size=8 * side, patch_size=8), batch_size=4,
            mask_ratio=hidden / side**2, smallest_block=smallest,
        )  # fmt: skip
        mask = recipe.view_plan().views[0].mask
        assert mask is not None
        generator = masking.MaskingGenerator((side, side), hidden, min_num_patches=smallest)
        for seed in range(50):
            random.seed(seed)
            own = block_mask(mask)
            random.seed(seed)
            random.uniform(*random.choice(mask.ratios))  # ours draws a share first
            assert np.array_equal(generator().flatten(), own.numpy())


CAE_NAMES = (
    ("pretext_neck.regressor_blocks.", "regressor."), ("pretext_neck.decoder_blocks.", "decoder."),
    ("pretext_neck.norm2.", "decoder_norm."), ("pretext_neck.norm.", "regressor_norm."),
    ("pretext_neck.", ""),
)  # fmt: skip


def cae_name(name: str) -> str:
    name = re.sub(r"cross_attn\.([qv])_bias$", r"attn.\1.bias", name)
    name = name.replace("cross_attn", "attn").replace("mlp_cross", "mlp").replace("_cross.", ".")
    name = block_name(name.replace(".norm1_", ".norm_"))
    for theirs, ours in CAE_NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def test_cae(official: Any, parity: Parity) -> None:
    """First weights, then three steps of ours and theirs: the teacher lags one behind."""
    modeling, masking, optimisation = official(
        "lxtGH+CAE", "models.modeling_cae", "furnace.masking_generator", "furnace.optim_factory"
    )  # d7259714
    torch.manual_seed(0)
    arguments = SimpleNamespace(
        decoder_num_classes=24, decoder_embed_dim=48, regressor_depth=2, decoder_num_heads=4,
        decoder_layer_scale_init_value=0.1, decoder_depth=3, fix_init_weight=False, base_momentum=0,
    )  # fmt: skip
    theirs = modeling.VisionTransformerForMaskedImageModeling(
        img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, init_values=0.1,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), args=arguments,
    )  # fmt: skip
    recipe = CaeRecipe(
        **{**COMMON, "tokenizer": "kmeans"}, lr=1e-2, regressor_depth=2, decoder_depth=3
    )
    ours = ContextAutoencoder(recipe, HALF, UNIT, BrightnessTokenizer(24, 8))
    parity(
        "official CAE, positions (float32)", ours.encoder.pos_embed, theirs.encoder.pos_embed, 1e-6
    )
    same_spread(ours, theirs, cae_name)
    groups = optimisation.get_parameter_groups(theirs, 0.05, {})
    expected = {id(q): group["weight_decay"] for group in groups for q in group["params"]}
    own_groups = no_decay_groups(ours, recipe)
    decays = {id(q): group["weight_decay"] for group in own_groups for q in group["params"]}
    for key, q in theirs.named_parameters():
        mine = ours.get_parameter(cae_name(key))
        assert mine.requires_grad == q.requires_grad, key
        if q.requires_grad:
            assert decays[id(mine)] == expected[id(q)], key
    assert not hasattr(theirs, "no_weight_decay")  # so that it spares nothing by name

    ours, theirs = ours.double(), shaken(theirs)
    with torch.no_grad():
        # the original makes some of its positions anew, in float32
        for vit in (theirs.encoder, theirs.teacher):
            vit.pos_embed.copy_(vit.build_2d_sincos_position_embedding(48, use_cls_token=True))
    take_over(ours, {cae_name(k): v for k, v in theirs.state_dict().items()})
    optimizers = (
        torch.optim.AdamW(
            [{key: group[key] for key in ("params", "weight_decay")} for group in groups], 1e-2
        ),
        build_optimizer(own_groups, recipe),
    )
    for step in range(3):
        images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
        removed = torch.rand(4, 64).argsort(1) < recipe.num_removed
        codes = torch.randint(0, 24, (4, 64))
        logits, latent, target = theirs(images, removed)
        loss = nn.functional.cross_entropy(logits, codes[removed])
        loss = loss + 2 * nn.functional.mse_loss(latent, target)
        found = ours.step(images, mask_of(removed, recipe.num_removed), codes, [None] * 4)
        if step == 0:
            compare("CAE", parity, ours, theirs, cae_name, (found.loss, loss))
        else:
            parity("official CAE, later losses", found.loss.detach(), loss.detach(), 1e-8)
            (found.loss + loss).backward()
        ours.before_step(step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for key, q in theirs.teacher.named_parameters():
            mine = ours.get_parameter(cae_name(f"teacher.{key}"))
            parity("official CAE, teacher", mine, q, 1e-8)
    mask = CaeRecipe(dataset="none").view_plan().views[0].mask
    assert mask is not None
    generator = masking.MaskingGenerator((14, 14), 98, min_num_patches=16)
    for seed in range(50):
        random.seed(seed)
        own = block_mask(mask)
        random.seed(seed)
        random.uniform(*random.choice(mask.ratios))  # ours draws a share first
        assert np.array_equal(generator().flatten(), own.numpy())


def registry() -> Any:
    """A stand-in for mmengine's: remembers classes by name and builds them from dictionaries."""
    known: dict[str, type] = {}

    def register_module(**_: Any) -> Callable[[type], type]:
        return lambda kind: known.setdefault(kind.__name__, kind)

    def build(content: dict[str, Any]) -> Any:
        return known[content["type"]](**{k: v for k, v in content.items() if k != "type"})

    return SimpleNamespace(register_module=register_module, build=build)


@pytest.mark.usefixtures("alone")
def test_heads_of_cmae(official: Any, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its projectors and its loss; backbone and decoders are those of MAE."""

    class BaseModule(nn.Module):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

    def build_norm_layer(cfg: dict[str, Any], width: int) -> tuple[str, nn.Module]:
        return "bn", nn.BatchNorm1d(width, eps=cfg.get("eps", 1e-5))

    def gather(tensor: Tensor) -> Tensor:
        return tensor

    for name, content in {
        "mmengine": {}, "mmengine.model": {"BaseModule": BaseModule}, "mmcv": {},
        "mmcv.cnn": {"build_norm_layer": build_norm_layer}, "cmae": {},
        "cmae.registry": {"MODELS": registry()}, "cmae.utils": {"concat_all_gather": gather},
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    assert ORACLES is not None
    loaded = []
    for path in ("necks/nonlinear_neck.py", "heads/cmae_head.py"):  # e786a525
        file = Path(ORACLES) / "ZhichengHuang+CMAE/cmae/models" / path
        assert file.is_file(), f"{file} is missing; check it out there"
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        loaded.append(module)
    neck: dict[str, Any] = {
        "hid_channels": 20, "out_channels": 8, "with_bias": True, "with_last_bn": False,
        "with_avg_pool": False,
    }  # fmt: skip
    torch.manual_seed(0)
    projector, teacher = (shaken(loaded[0].NonLinearNeck(in_channels=48, **neck)) for _ in "st")
    head = shaken(
        loaded[1].CMAEPretrainHead(
            {"type": "NonLinearNeck", "in_channels": 8, **neck}, patch_size=8, norm_pix=True
        )
    )
    recipe = CmaeRecipe(**COMMON, projector_hidden=20, projector_dim=8)
    ours = ContrastiveMaskedAutoencoder(recipe, HALF, UNIT).double()
    places = {"fc0": "0", "bn0": "1", "fc1": "3"}
    for mine, other in (
        (ours.projector, projector), (ours.teacher_projector, teacher),
        (ours.predictor, head.predictor),
    ):  # fmt: skip
        state = {places[k.split(".")[0]] + k[3:]: v for k, v in other.state_dict().items()}
        mine.load_state_dict({k: v for k, v in state.items() if "num_batches" not in k})
    images, others = torch.randn(2, 4, 3, 64, 64, dtype=torch.float64)
    noise = torch.rand(4, 16)
    mask = block_grid_mask(noise, 0.65, 8)
    step = ours.step(images, others, mask)
    latent = ours.encoder(images, mask.ids_keep)
    features = ours.feature_decoder.head(ours.feature_decoder(latent, mask)[:, 1:])
    pixels = torch.zeros(4, 64, 192, dtype=torch.float64)
    places_of = mask.ids_removed[..., None].expand(-1, -1, 192)
    pixels = pixels.scatter(1, places_of, ours.predict(latent, mask))
    with torch.no_grad():
        tokens = ours.teacher_encoder(others)[:, 1:]
    losses = head(
        images, pixels, mask.removed.double(),
        projector(features.mean(1, keepdim=True)), teacher(tokens.mean(1, keepdim=True)),
    )  # fmt: skip
    theirs = losses["loss_rc"] + losses["loss_ct"]
    parity("official CMAE, loss", step.loss.detach(), theirs.detach(), 1e-10)
