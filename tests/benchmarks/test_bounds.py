"""What bounds on the loss cost beside the head's forward pass, and how far above the worst case they are."""

import pytest
import torch
from torch.nn.functional import linear

from lightning_flatness.functional import decision_radius, flatness_factors, loss_increase_bound, loss_radius
from tests.attacks.models import digit_cnn, held_out
from tests.functional.worst_case import FRACTIONS, HeadProblem, random_problem, worst_case

from .measuring import CPU_TIME, alternate, extra_memory, make_head, print_table

TITLE = "Cost of bounds at a head (batch, classes, dim), as a multiple of its forward pass; CPU time, one thread"
COLUMNS = ("head", "forward ms", "factors", "decision", "trace", "bennett", "refined", "loss_radius", "refined MiB")
METHODS = ("bennett", "trace", "refined")

pytestmark = CPU_TIME


@pytest.mark.parametrize(
    "size", [(256, 10, 512), (1024, 10, 512), (256, 100, 640), (256, 1000, 2048), (256, 50257, 768)], ids=str
)
@torch.inference_mode()
def test_cost(benchmark, report, size):
    if benchmark.disabled and size[1] > 100:
        pytest.skip("runs with --benchmark-enable")
    features, weight, logits, target = make_head(*size)
    radius = 0.1 * features.norm(dim=1)
    functions = {
        "factors": lambda: flatness_factors(features, weight, logits),
        "decision": lambda: decision_radius(logits, target, weight),
        "trace": lambda: loss_increase_bound(logits, target, weight, radius, method="trace"),
        "bennett": lambda: loss_increase_bound(logits, target, weight, radius),
        "refined": lambda: loss_increase_bound(logits, target, weight, radius, method="refined"),
        "loss_radius": lambda: loss_radius(logits, target, weight, 0.5),
    }
    if size[1] > 10_000:
        functions = {name: functions[name] for name in ("factors", "decision", "trace", "bennett")}
    memory = extra_memory(functions.get("refined", functions["bennett"]))
    seconds = alternate(benchmark, functions | {"forward": lambda: linear(features, weight)})
    if "refined" in functions:
        assert (functions["refined"]() <= functions["bennett"]()).all()
    if benchmark.enabled:
        forward = seconds["forward"]
        cells = (f"{seconds[name] / forward:.1f}x" if name in seconds else "-" for name in COLUMNS[2:-1])
        report(str(size), f"{1e3 * forward:.2f}", *cells, f"{memory:.0f}")


@pytest.mark.parametrize("source", ["random", "standard", "adversarial"])
def test_tightness(benchmark, source):
    """Bound over worst case for every radius; random problems have 2 to 50 classes, networks 10."""
    problems = list(_problems(source, full=benchmark.enabled))
    bounds = {name: [] for name in METHODS}

    def evaluate():
        for name in METHODS:
            bounds[name] = [loss_increase_bound(*problem, method=name) for problem in problems]

    benchmark.pedantic(evaluate)
    worst = torch.cat([worst_case(problem, 100, 0) for problem in problems])
    ratios = {name: (torch.cat(values) / worst)[worst > 1e-12] for name, values in bounds.items()}
    assert all((ratio > 1 - 1e-9).all() for ratio in ratios.values())
    assert ratios["refined"].max() < 1.4
    if benchmark.enabled:
        fractions = torch.tensor(FRACTIONS).repeat(len(worst) // len(FRACTIONS))[worst > 1e-12]
        rows = [
            (name, str(label), *(f"{ratio[chosen].quantile(q):.3f}" for q in (0.5, 0.99, 1.0)))
            for name, ratio in ratios.items()
            for label, chosen in [(f"{f:g}", fractions == torch.tensor(f)) for f in FRACTIONS]
            + [("all", torch.ones_like(fractions, dtype=torch.bool))]
        ]
        print_table(f"{source}: bound over worst case", ("method", "radius / ‖φ‖", "median", "p99", "max"), rows)


def _problems(source, *, full):
    if source == "random":
        yield from (random_problem(seed) for seed in range(400 if full else 3))
        return
    epochs, epsilon = {"standard": (5, 0.0), "adversarial": (8, 0.2)}[source] if full else (1, 0.0)
    model, (inputs, target) = digit_cnn(epochs, epsilon), held_out(1000 if full else 50)
    with torch.no_grad():
        features, weight = model[:-1](inputs).double(), model[-1].weight.detach().double()
        logits = features @ weight.T + model[-1].bias.double()
    for row in range(0, len(target), 50):
        rows = torch.arange(row, row + 50).repeat_interleave(len(FRACTIONS))
        fractions = torch.tensor(FRACTIONS, dtype=torch.float64).repeat(50)
        yield HeadProblem(logits[rows], target[rows], weight, fractions * features[rows].norm(dim=1))
