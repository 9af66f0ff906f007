"""Run stages as small as they get and print what of the project each imported and read.

A program of its own, started by test_closure_at_run_time.py. Its argument is a folder with the
inputs; each line that it reads names a stage and a variant, which run in a child: nothing of the
project is loaded there but what the stage itself loads. Other people's packages are loaded once.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("asl_core", "pipeline")
read: set[str] = set()

HEAD = {
    "out_dim": 24, "head_hidden_dim": 16, "head_bottleneck_dim": 8, "freeze_last_layer": 0,
    "warmup_teacher_temp_epochs": 0,
}  # fmt: skip
SMALL = {
    "cmae": {"projector_hidden": 24, "projector_dim": 8},
    "sim": {"predictor_embed_dim": 16, "predictor_num_heads": 2, "predictor_depth": 1},
    "mocov3": {"projector_hidden": 24, "projector_dim": 8},
    "dino": {**HEAD, "local_crops": 2, "local_size": 16}, "ibot": {**HEAD, "shared_head": False},
}  # fmt: skip


def note(event: str, arguments: tuple) -> None:
    """Note each file of the packages that is opened and is no code."""
    if event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0]).resolve()
        if path.parent.name == "__pycache__":  # a first import writes there, by another name first
            return
        if path.is_relative_to(ROOT) and path.suffix not in (".py", ".pyc", ""):
            relative = path.relative_to(ROOT).as_posix()
            if relative.split("/")[0] in PACKAGES:
                read.add(relative)


def recipe_of(stage: str, variant: str, folder: Path) -> object:
    """Return the smallest recipe of a stage."""
    if stage == "prepare":
        sources = importlib.import_module("asl_core.recipes.datasets")
        return {
            "icons": lambda: sources.Icons(
                image_size=32, train=8, test=4, regions=sources.Regions(scales=(16,))
            ),
            "scenes": lambda: sources.Scenes(image_size=32, train=8, test=4, objects=(1, 2)),
            "union": lambda: sources.Union_(
                members=(sources.Icons(image_size=32, train=4, test=2),
                         sources.Scenes(image_size=32, train=4, test=2, objects=(1, 2)))
            ),
        }[variant]()  # fmt: skip
    if stage == "tokenize":
        return importlib.import_module("asl_core.recipes.tokenizers").KMeansTokenizer(
            dataset="icons", num_codes=4, patch_size=8, image_size=32, images=8, epochs=1
        )
    if stage == "pretrain":
        module = importlib.import_module(f"asl_core.recipes.{variant}")
        recipe = next(v for k, v in vars(module).items() if k.lower() == f"{variant}recipe")
        vit = importlib.import_module("asl_core.recipes.models").Vit(
            image_size=32, patch_size=8, embed_dim=24, depth=8, num_heads=3,
            decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
        )  # fmt: skip
        codes = {"tokenizer": "kmeans"} if "tokenizer" in recipe.__dataclass_fields__ else {}
        return recipe(
            dataset="icons", model=vit, epochs=1, batch_size=4, lr=1e-3, warmup_epochs=0,
            precision="fp32", **{**codes, **SMALL.get(variant, {})},
        )  # fmt: skip
    if stage == "report":
        params = importlib.import_module("pipeline.config.params")
        return params.load_params(folder / "params.yaml")
    if stage == "knn":
        return importlib.import_module("asl_core.recipes.knn").NearestNeighbours(
            dataset="icons", k=2
        )
    if stage == "embed":
        return importlib.import_module("asl_core.recipes.embedding").Embedding(dataset="icons")
    if stage == "analyze":
        return importlib.import_module("asl_core.recipes.analysis").TokenAnalysis(
            dataset="scenes", images=4
        )
    if stage == "fewshot":
        return importlib.import_module("asl_core.recipes.fewshot").FewShot(
            dataset="icons", percent=(50,), shots=(1,), draws=2
        )
    few = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "precision": "fp32"}
    if stage == "attentive":
        return importlib.import_module("asl_core.recipes.attentive").AttentiveProbe(
            dataset="icons", queries=2, **few
        )
    transfer = importlib.import_module("asl_core.recipes.transfer")
    return {
        "linprobe": lambda: transfer.LinearProbe(dataset="icons", **few),
        "finetune": lambda: transfer.FineTune(dataset="icons", **few),
        "detect": lambda: transfer.Detection(
            dataset="scenes", image_size=32, window_size=2, pyramid_channels=16, rpn_batch=32,
            roi_batch=16, proposals=30, box_head_dim=24, anchor_sizes=(8, 12, 16, 24, 32), **few
        ),
        "segment": lambda: transfer.Segmentation(
            dataset="scenes", crop_size=32, slide_stride=16, channels=8, auxiliary_channels=4, **few
        ),
    }[stage]()  # fmt: skip


def trace(stage: str, variant: str, folder: Path) -> dict[str, list[str]]:
    """Run the stage on folder's inputs, its outputs under folder/<stage>; return what it loaded."""
    sys.addaudithook(note)
    module = importlib.import_module(f"pipeline.stages.{stage}")
    request = sys.modules["pipeline.stages.request"].StageRequest
    journal = importlib.import_module("asl_core.engine.journal").Journal
    resources = importlib.import_module("asl_core.recipes.optimisation").Resources
    recipe = recipe_of(stage, variant, folder)
    out = folder / f"{stage}-{variant}"
    outputs = {role: out / role for role in ("details", "dataset", "encoder", "held_out")}
    for output in outputs.values():
        output.mkdir(parents=True)
    wants_codes = stage == "pretrain" and hasattr(recipe, "tokenizer")
    name = "tokenize-" if wants_codes else f"prepare-{getattr(recipe, 'dataset', 'none')}"
    dataset = folder / name / "dataset"
    inputs = {
        "dataset": dataset, "encoder": folder / "pretrain-mae/encoder", "suite": folder,
        "held_out": folder / "pretrain-mae/held_out", "data_root": folder,
    }  # fmt: skip
    with journal.open(out / "work/journal") as opened:
        module.run(
            request(
                stage,
                variant,
                recipe,
                inputs,
                out / "work",
                outputs,
                opened,
                resources(device="cpu"),
            )
        )
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in PACKAGES)
    return {"modules": loaded, "files": sorted(read)}


def main(folder: Path) -> None:
    """Answer each line with one of JSON."""
    for name in ("torch", "torchvision", "timm", "matplotlib.pyplot"):
        importlib.import_module(name)
    for line in sys.stdin:
        stage, _, variant = line.rstrip("\n").partition(" ")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer: dict[str, object] = dict(trace(stage, variant, folder))
            except BaseException:
                answer = {"error": traceback.format_exc()}
            with os.fdopen(writing, "w") as file:
                file.write(json.dumps(answer))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            said = file.read()
        os.waitpid(child, 0)
        sys.stdout.write((said or json.dumps({"error": "it died"})) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
