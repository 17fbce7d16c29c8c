"""The parts of the page of the benchmarks: which modules each one runs, and what its tables mean."""

from typing import NamedTuple


class Part(NamedTuple):
    """``modules`` of ``tests/benchmarks``, under one heading."""

    name: str
    heading: str
    modules: tuple[str, ...]
    meaning: str


PARTS = (
    Part(
        "flatness",
        "Relative flatness at the head",
        ("test_peers", "test_head_cost"),
        "How long this package and others take for the relative flatness of one and the same head, and how far each is "
        "from the definition in float64; the last column is that of a head with confident predictions, where other "
        "forms lose their digits. The second table sets the same in relation to the forward pass of the head.",
    ),
    Part(
        "attacks",
        "Attacks",
        ("test_attacks",),
        "Robust accuracy that each attack leaves (lower is stronger), what it takes in passes per sample, and how much "
        "faster than the first row it is; below 1x it is slower. PGD beside that of torchattacks, foolbox and adv-lib; "
        "the budgets `standard` and `thorough` beside AutoAttack.",
    ),
    Part(
        "curve",
        "Robust accuracy over many epsilons",
        ("test_curve",),
        "One attack per epsilon, the same without the samples that are fooled already, and bisection "
        "(`first_fooling_epsilon`).",
    ),
    Part(
        "bounds",
        "Bounds on the loss",
        ("test_bounds",),
        "What the bounds cost beside the forward pass of the head, and how far above the worst case they are: 1 is "
        "exact, below 1 would be wrong.",
    ),
    Part(
        "lipschitz",
        "Lipschitz constants",
        ("test_lipschitz",),
        "A certificate is an upper bound and an estimate a lower one; the truth is between. For deep networks the two "
        "are far from each other.",
    ),
    Part(
        "masking",
        "Gradient masking",
        ("test_masking",),
        "Which rules fire on models that hide nothing (none should) and on models that hide their gradients (at least "
        "one should), and what asking costs.",
    ),
    Part(
        "trajectory",
        "Along an attack",
        ("test_trajectory",),
        "What following every sample adds to the attack that is followed.",
    ),
    Part(
        "monitors",
        "Monitors in a training",
        ("test_monitor_overhead", "test_epoch_overhead"),
        "What a monitor adds to the validation of a ResNet-18, and what each one takes at its default settings as a "
        "share of an epoch of training: a small CNN on 4,000 digits, whose epoch is short, and a ResNet-18 on images "
        "like those of CIFAR-10, a quarter as many.",
    ),
    Part(
        "growth",
        "Growth",
        ("test_growth",),
        "How the time grows with the number of classes, features, samples and processes: the slope of log time against "
        "log size, from the smallest to the largest and between the two largest; 1 is linear.",
    ),
)
