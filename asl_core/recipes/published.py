"""Weights that their authors publish: where a file is, and how to know that it is the right one."""

from dataclasses import dataclass

from asl_core.recipes.models import MODELS, Vit


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A checkpoint with an encoder.

    Attributes:
        url: Of the file.
        digest: `md5:` or `sha256:` and how the hexadecimal digest begins, as its authors give it;
            None: they give none.
        licence: Terms of the weights.
        page: Where the authors publish and describe them.
        epochs: How long they were trained, on ImageNet-1K.
        model: Size of the encoder.
    """

    url: str
    digest: str | None
    licence: str
    page: str
    epochs: int
    model: Vit = MODELS["vit-b"]

    @property
    def file_name(self) -> str:
        """Name of the file at the end of its address."""
        return self.url.rpartition("/")[2]


PUBLISHED: dict[str, PublishedWeights] = {
    "mae-vit-b": PublishedWeights(
        url="https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth",
        digest="md5:8cad7c",
        licence="CC BY-NC 4.0",
        page="https://github.com/facebookresearch/mae",
        epochs=1600,
    ),
    "dino-vit-b": PublishedWeights(
        url="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        digest=None,
        licence="Apache 2.0",
        page="https://github.com/facebookresearch/dino",
        epochs=400,
    ),
    "ibot-vit-b": PublishedWeights(
        url="https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16/checkpoint_teacher.pth",
        digest=None,
        licence="Apache 2.0",
        page="https://github.com/bytedance/ibot",
        epochs=400,
    ),
    "mocov3-vit-b": PublishedWeights(
        url="https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
        digest=None,
        licence="CC BY-NC 4.0",
        page="https://github.com/facebookresearch/moco-v3",
        epochs=300,
    ),
    "deit-vit-b": PublishedWeights(
        url="https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
        digest="sha256:b5f2ef4d",  # torch.hub's rule: how it begins, in the file's name
        licence="Apache 2.0",
        page="https://github.com/facebookresearch/deit",
        epochs=300,
    ),
}
