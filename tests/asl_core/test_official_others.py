"""Our methods beside their official code, where checkouts are at hand: ASL_ORACLES names a folder.

In it `<owner>+<name>`, checked out at the commit that each test names. The official code runs on
today's libraries with stand-ins for what it only logs with; it is called, none of it is here.
"""

import importlib
import importlib.util
import os
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
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from asl_core.methods.ccmim import ContextContrastiveAutoencoder
from asl_core.methods.cmae import ContrastiveMaskedAutoencoder
from asl_core.methods.dino import SelfDistillation
from asl_core.methods.ibot import OnlineTokenizer
from asl_core.methods.sim import SiameseImageModel
from asl_core.modules.masking import block_grid_mask, mask_of
from asl_core.modules.positions import relative_positions
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.sim import SimRecipe

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
        "timm.models.layers.helpers": {"to_2tuple": to_2tuple},
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
