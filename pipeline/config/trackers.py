"""Which trackers there are, by name; one is imported only where cluster.yaml names it."""

TRACKERS = {"mlflow": "pipeline.tracking.mlflow.kind:mlflow"}
"""What `tracker:` of cluster.yaml may name: a function without arguments that returns a
`pipeline.tracking.port.TrackerKind`. A lab names one of its own as `module:function`."""

DEFAULT = "mlflow"
