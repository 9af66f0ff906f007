"""Pages of Python, whose docstrings mkdocstrings reads."""

from collections.abc import Iterator

FOLDER = "python"

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "api": (
        "asl_core.api",
        "For use from Python: [a page with examples](../python.md).",
        ("asl_core.api.pretrain", "asl_core.api.load_encoder", "asl_core.transfer.embedding.embed",
         "asl_core.transfer.embedding.Rows", "asl_core.errors"),
    ),
    "encoder": (
        "Encoders and their vectors",
        "What `load_encoder` returns, and how the evaluations read it.",
        ("asl_core.modules.encoder", "asl_core.transfer.features",
         "asl_core.transfer.embedding_vectors", "asl_core.exchange.importing",
         "asl_core.exchange.exporting"),
    ),
    "data": (
        "Data",
        "Packed datasets, and what a source of images is.",
        ("asl_core.data.shards", "asl_core.data.manifest", "asl_core.data.prepare",
         "asl_core.data.sources.source", "asl_core.data.views"),
    ),
    "methods": (
        "For authors of methods",
        "What the loop and a method know of each other, and the parts that methods share. A worked "
        "example: [adding a method](../adding_a_method.md).",
        ("asl_core.protocol", "asl_core.recipes.pretraining", "asl_core.recipes.views",
         "asl_core.randomness", "asl_core.distributed", "asl_core.modules.batch_norm",
         "asl_core.modules.momentum", "asl_core.modules.masking", "asl_core.losses.reconstruction",
         "asl_core.losses.alignment", "asl_core.losses.contrastive",
         "asl_core.losses.distillation", "asl_core.engine.context", "asl_core.engine.loop"),
    ),
    "ports": (
        "Schedulers and trackers of your own",
        "What `module:function` in `cluster.yaml` has to return: "
        "[where to add](../architecture.md#where-to-add).",
        ("pipeline.schedulers.port", "pipeline.tracking.port", "pipeline.tracking.tracked"),
    ),
}  # fmt: skip
"""File -> title, first lines, names that are described."""


def pages() -> Iterator[tuple[str, str]]:
    """Yield all pages: path below docs, Markdown."""
    for name, (title, lead, objects) in PAGES.items():
        blocks = "\n\n".join(f"::: {each}" for each in objects)
        yield f"{FOLDER}/{name}.md", f"# {title}\n\n{lead}\n\n{blocks}\n"
