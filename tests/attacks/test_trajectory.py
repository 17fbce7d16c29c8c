"""Trajectories are what the engine's attack goes through, measured by the functions for single points."""

from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_flatness.attacks import PathName, ThreatModel, Trajectory, path_positions, pgd, trajectory
from lightning_flatness.attacks import _trajectory_recorder as recorder
from lightning_flatness.attacks._paths import PATHS, Start
from lightning_flatness.attacks.losses import cross_entropy, margin
from lightning_flatness.functional import relative_flatness
from tests.attacks.models import digit_cnn, held_out

PATH_NAMES = get_args(PathName)
THREAT = ThreatModel(epsilon=0.3)
STEPS, SIZE, COUNT = 12, 0.05, 24


class SmallNet(nn.Module):
    """Images of two channels, in float64, so that batches of another size round alike."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten())
        self.head = nn.Linear(108, 4)
        self.double().eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


@pytest.fixture
def net() -> SmallNet:
    return SmallNet()


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(COUNT, 2, 8, 8, dtype=torch.float64)


@pytest.fixture
def target(net: SmallNet, inputs: Tensor) -> Tensor:
    """Some of them wrong."""
    predicted = net(inputs).argmax(1)
    predicted[::5] = (predicted[::5] + 1) % 4
    return predicted


def follow(net: SmallNet, inputs: Tensor, target: Tensor, **settings) -> Trajectory:
    return trajectory(
        net, net.head, inputs, target, **{"threat": THREAT, "steps": STEPS, "step_size": SIZE, **settings}
    )


def assert_point(found: Trajectory, index: int, net: SmallNet, x: Tensor, clean: Tensor, target: Tensor) -> None:
    """All quantities of one point, by the functions for a batch."""
    with torch.no_grad():
        features, clean_features = net.body(x), net.body(clean)
        logits = net.head(features)
    kappa = partial(relative_flatness, features, net.head.weight.detach(), logits, log=True)
    expected = {
        "log_neuronwise": kappa(),
        "log_layerwise": kappa(variant="layerwise"),
        "log_maxeig": kappa(variant="maxeig"),
        "loss": cross_entropy(logits, target),
        "confidence": logits.softmax(1).amax(1),
        "margin": margin(logits, target),
        "feature_norm": features.norm(dim=1),
        "feature_distance": (features - clean_features).norm(dim=1),
        "input_distance": (x - clean).abs().flatten(1).amax(1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found.points, name)[index], values.double(), rtol=1e-9, atol=1e-12, msg=name)
    assert torch.equal(found.points.flipped[index], logits.argmax(1) != target)


def test_every_point_is_measured_as_it_would_be_by_itself(net, inputs, target):
    found = follow(net, inputs, target)
    settings = {"steps": STEPS, "step_size": SIZE, "random_start": False, "stop_when_fooled": False}
    result = pgd(net, inputs, target, THREAT, keep_path=True, **settings)
    assert result.path is not None
    assert torch.equal(found.rows, result.initially_correct.nonzero().squeeze(1))
    assert 0 < len(found.rows) < COUNT
    assert found.positions == tuple(range(STEPS + 1)) == result.path_steps[1:]
    for index in range(STEPS + 1):
        assert_point(found, index, net, result.path[index + 1][found.rows], inputs[found.rows], target[found.rows])
    assert (found.forwards, found.backwards) == (result.forwards, result.backwards)


def test_path_goes_on_behind_the_flip(net, inputs, target):
    points = follow(net, inputs, target).points
    fooled_early = points.flipped[:-4].any(0)
    assert fooled_early.sum() > 5
    assert (points.loss[-1] > points.loss[-4])[fooled_early].double().mean() > 0.9
    moves = points.feature_distance.diff(dim=0)[-4:].abs() > 0
    assert moves[:, fooled_early].double().mean() > 0.9


@pytest.mark.parametrize("path", PATH_NAMES)
def test_memory_limit_changes_nothing(path, net, inputs, target, monkeypatch):
    expected = follow(net, inputs, target, path=path).points
    monkeypatch.setattr(recorder, "_BUFFER_ELEMENTS", 1)
    for value, other in zip(follow(net, inputs, target, path=path).points, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [name for name in PATH_NAMES if name != "image"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batches_of_another_size_change_nothing(path, norm, net, inputs, target):
    threat = ThreatModel(norm, 0.3)
    whole = follow(net, inputs, target, path=path, threat=threat)
    generator = torch.Generator().manual_seed(0)
    cuts = [slice(0, 1), slice(1, 9), slice(9, COUNT)]
    parts = [
        follow(net, inputs[rows], target[rows], path=path, threat=threat, generator=generator).points for rows in cuts
    ]
    for name, value in whole.points._asdict().items():
        joined = torch.cat([getattr(part, name) for part in parts], dim=1)
        torch.testing.assert_close(joined, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATH_NAMES)
def test_first_point_is_the_clean_input(path, net, inputs, target):
    found = follow(net, inputs, target, path=path)
    assert found.positions == path_positions(path, STEPS)
    assert found.positions[0] == 0
    assert_point(found, 0, net, inputs[found.rows], inputs[found.rows], target[found.rows])
    assert len(found.points.loss) == len(found.positions)


@pytest.mark.parametrize("path", PATHS)
def test_other_paths_take_one_pass_per_point(path, net, inputs, target):
    with torch.no_grad():
        clean_logits = net(inputs)
    found = follow(net, inputs, target, path=path, clean_logits=clean_logits)
    assert (found.forwards, found.backwards) == (len(found.positions) * len(found.rows), 0)


def start(inputs: Tensor, threat: ThreatModel) -> Start:
    lower, upper = threat.value_range(inputs)
    return Start(threat.around(inputs), inputs.roll(-1, 0), torch.arange(len(inputs)), lower, upper)


NORMALISED = ThreatModel("l2", 1.5, mean=[0.4, 0.5], std=[0.2, 0.25])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_points_are_in_range_whatever_the_normalisation(path, dtype, inputs):
    mean, std = (torch.tensor(values).view(1, 2, 1, 1) for values in (NORMALISED.mean, NORMALISED.std))
    data = inputs.float()
    plain, normalised = start(data, ThreatModel("l2", 1.5)), start(((data - mean) / std).to(dtype), NORMALISED)
    for position in PATHS[path].positions:
        x = PATHS[path].at(normalised, position)
        assert x.dtype == dtype
        found, expected = NORMALISED.in_data_units(x), PATHS[path].at(plain, position)
        slack = 1e-5 if dtype == torch.float32 else 0.02
        assert -slack <= found.min() <= found.max() <= 1 + slack
        if path != "random":  # its directions are those of the units that the model sees
            torch.testing.assert_close(found.float(), expected, rtol=0, atol=slack)


def test_straight_lines(inputs):
    begin = start(inputs, THREAT)
    for level in (0.3, 1.0):
        other = inputs + level * (inputs.roll(-1, 0) - inputs)
        torch.testing.assert_close(PATHS["image"].at(begin, level), other)
        noise = (PATHS["noise"].at(begin, level) - inputs) / level + inputs
        assert 0 <= noise.min() <= noise.max() <= 1
        assert noise.std() == pytest.approx(12**-0.5, rel=0.05)
    far = [PATHS["noise"].at(begin, level) for level in (0.4, 0.8)]
    torch.testing.assert_close(far[1] - inputs, 2 * (far[0] - inputs))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_direction_has_the_norm_of_the_attack(norm):
    centre = torch.full((4, 2, 8, 8), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm, 0.3)
    for level in (0.2, 1.0):
        x = PATHS["random"].at(start(centre, threat), level)
        assert threat.distance(x, centre).tolist() == pytest.approx([0.3 * level] * 4, rel=1e-5)


def test_corruptions_follow_their_formulas(inputs):
    begin = start(inputs, THREAT)
    mean = inputs.mean((2, 3), keepdim=True)
    torch.testing.assert_close(PATHS["brightness"].at(begin, 2.0), (inputs + 0.2).clamp(max=1))
    torch.testing.assert_close(PATHS["contrast"].at(begin, 3.0), mean + 0.2 * (inputs - mean))
    quiet = start(torch.full((9, 2, 30, 30), 0.5, dtype=torch.float64), THREAT)
    assert (PATHS["gaussian_noise"].at(quiet, 1.0) - 0.5).std() == pytest.approx(0.08, rel=0.03)


def test_blur_is_a_gaussian():
    images = torch.rand(2, 3, 32, 40, dtype=torch.float64)
    sigma = 0.8 * 40 / 32
    expected = gaussian_blur(images, [7, 7], [sigma, sigma])
    inner = (..., slice(4, -4), slice(4, -4))  # its borders are mirrored
    torch.testing.assert_close(PATHS["blur"].at(start(images, THREAT), 4.0)[inner], expected[inner])
    flat = torch.full((1, 1, 5, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(PATHS["blur"].at(start(flat, THREAT), 5.0), flat)


@pytest.mark.parametrize("path", ["attack", "noise"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_in_any_gradient_mode_and_leaves_no_hook(path, mode, net, inputs, target):
    expected = follow(net, inputs, target, path=path).points
    with mode():
        found = follow(net, inputs.clone(), target.clone(), path=path).points
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))
    assert not net.head._forward_hooks
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("path", PATH_NAMES)
def test_nobody_to_follow(path, net, inputs, target):
    for rows in (slice(0, 0), slice(0, 1)):  # the first one is wrong
        found = follow(net, inputs[rows], target[rows], path=path)
        assert len(found.rows) == 0
        assert {value.shape for value in found.points} == {(len(found.positions), 0)}


def test_head_may_see_the_batch_in_parts(net, inputs, target):
    def in_parts(x: Tensor) -> Tensor:
        return torch.cat([net.head(part) for part in net.body(x).split(5)])

    expected = follow(net, inputs, target).points
    for value, other in zip(
        trajectory(in_parts, net.head, inputs, target, THREAT, steps=STEPS, step_size=SIZE).points,
        expected,
        strict=True,
    ):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9)


def test_default_steps_reach_the_ball_two_and_a_half_times(net, inputs, target):
    threat = ThreatModel(epsilon=[0.1, 0.2])
    found = follow(net, inputs, target, threat=threat, steps=10, step_size=None).points
    assert found.input_distance[1].tolist() == pytest.approx([0.05] * found.loss.shape[1])


def test_point_observer_is_told_of_every_call(net, inputs, target):
    told: list[tuple[int, int, float]] = []

    def note(rows: Tensor, x: Tensor, step: int) -> None:
        assert not x.requires_grad
        told.append((step, len(rows), float((x - inputs[rows]).abs().max())))

    result = pgd(net, inputs, target, THREAT, steps=4, restarts=2, on_point=note)
    assert [step for step, *_ in told] == sorted(step for step, *_ in told)
    assert told[0][0] == 0
    assert result.forwards == COUNT + sum(count for _, count, _ in told)
    assert all(0 < distance <= 0.3 + 1e-12 for *_, distance in told)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"path": "Square"},
            r"`path` must be 'attack' \(PGD, whose steps can be seen\) or one of noise, image, random, "
            "gaussian_noise, blur, contrast, brightness, got 'Square'",
        ),
        ({"steps": 0}, "`steps` must be >= 1, got 0"),
        ({"step_size": -1.0}, r"`step_size` must be > 0 or None, got -1\.0"),
        ({"path": "noise", "threat": ThreatModel(lower=None)}, "`path` 'noise' needs a valid range, got none; give"),
        ({"loss": "hinge"}, "`loss` must be one of"),
        ({"flatness_loss": "hinge"}, "`loss` must be one of"),
    ],
    ids=str,
)
def test_bad_arguments(settings, message, net, inputs, target, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        follow(net, inputs, target, **settings)


def test_blur_needs_images():
    head = nn.Linear(6, 3)
    with pytest.raises(
        ValueError, match=r"`path` 'blur' needs samples of shape \(channels, height, width\), got \(6,\)"
    ):
        trajectory(head, head, torch.rand(2, 6), torch.tensor([0, 1]), THREAT, path="blur")


def test_steps_of_a_path_are_checked():
    with pytest.raises(ValueError, match="`steps` must be >= 1, got 0"):
        path_positions("noise", 0)


def test_head_must_see_every_sample(net, inputs, target):
    with pytest.raises(ValueError, match="`head` must see one row for each of the 24 samples, got no call; pass the"):
        trajectory(net, nn.Linear(108, 4), inputs, target, THREAT)
    twice = lambda x: net(x) + net(x)  # noqa: E731
    with pytest.raises(ValueError, match=r"24 samples, got \[\(24, 108\), \(24, 108\)\]"):
        trajectory(twice, net.head, inputs, target, THREAT)
    with pytest.raises(ValueError, match=r"^`head` 'Sequential' .* makes \(24, 108\) of \(24, 8, 8, 2\)"):
        trajectory(net, net.body, inputs, target, THREAT)
    bent = nn.Sequential(net.head, nn.Softmax(1))
    with pytest.raises(ValueError, match=r"^`head` must be an affine map of its input"):
        trajectory(lambda x: bent(net.body(x)), bent, inputs, target, THREAT)


@pytest.mark.slow
def test_valley_behind_the_boundary_of_a_standard_cnn():
    model = digit_cnn()
    points = trajectory(model, model[-1], *held_out(200), THREAT, steps=40).points
    kappa, confidence, flipped = points.log_neuronwise.exp().mean(1), points.confidence.mean(1), points.flipped
    peak = int(kappa.argmax())
    assert kappa[peak] > 2.5 * kappa[0]
    assert 0.3 < flipped[peak].double().mean() < 0.9
    assert kappa[-1] < kappa[peak] / 3
    assert confidence[peak] < confidence[0] - 0.15
    assert confidence[-1] > confidence[peak] + 0.15
    assert points.loss.mean(1).diff().min() > -0.05
    assert flipped[-1].all()
