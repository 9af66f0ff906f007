"""Constants that bring pixels to zero mean and unit variance."""

Rgb = tuple[float, float, float]

NORMALISATIONS: dict[str, tuple[Rgb, Rgb]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # solo-learn's constants; openmixup has another std (.2023 .1994 .2010).
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of the channels R, G, B, for pixels in [0, 1]."""
