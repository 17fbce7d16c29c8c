"""Text classifiers and a language model of transformers, with random weights."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from tests.callbacks.conftest import fit
from tests.zoo.conftest import CLASSES, EPSILON, check_everything, foreign, images, kappa, loader, monitors, validate

transformers = foreign("transformers")
VOCABULARY, LENGTH = 40, 7
BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": CLASSES,
}


class Text(LightningModule):
    """Batches are dictionaries that the model takes as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(**batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def sentences(count: int = 6) -> list[dict[str, Any]]:
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(2))
    return [
        {"input_ids": row, "attention_mask": torch.ones(LENGTH, dtype=torch.int64), "labels": index % CLASSES}
        for index, row in enumerate(tokens)
    ]


def bert() -> Text:
    torch.manual_seed(0)
    return Text(transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)))


def _logits(module: Text, batch: Any, head: nn.Linear) -> tuple[Tensor, Tensor]:
    features: list[Tensor] = []
    module.eval()
    with torch.no_grad(), head.register_forward_hook(lambda _, args, __: features.append(args[0])):
        logits = module(**batch).logits
    return features[0], logits


def test_sequence_classification() -> None:
    module, data = bert(), sentences()
    head = module.model.classifier
    fit(module, monitor := RelativeFlatnessMonitor(), train=loader(data), val=loader(data))
    batch = next(iter(loader(data, len(data))))
    features, logits = _logits(module, batch, head)
    right = logits.argmax(1) == batch["labels"]
    expected = kappa(features, head.weight.detach(), logits)
    logged = validate(module, data, scaling := HeadScalingMonitor(), again := RelativeFlatnessMonitor())
    assert monitor.head_name == again.head_name == scaling.head_name == "model.classifier"
    for value in (logged["flatness/relative_flatness"], monitor.history()[-1]["flatness/relative_flatness"]):
        assert value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert logged["scaling/relative_flatness_1"] == pytest.approx(float(expected.mean()), rel=1e-4)
    if right.any():
        assert logged["flatness/correct"] == pytest.approx(float(expected[right].mean()), rel=1e-4)


@pytest.mark.parametrize(
    "monitor", [AttackMonitor, AttackTrajectoryMonitor, LocalRobustnessMonitor, HeadScalingMonitor]
)
def test_text_cannot_be_attacked(monitor: Any, unchecked_shapes: Any) -> None:
    module = bert()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    message = r"^`inputs` must be a floating-point batch .*, got torch\.int64 \(\d, 7\); .* leave the attack out\.$"
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        fit(module, monitor(epsilon=EPSILON), train=loader(sentences()), val=loader(sentences()))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_language_model_with_tied_embeddings() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2)
    module = Text(transformers.GPT2LMHeadModel(config))
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in sentences()]

    def shifted(batch: Any) -> tuple[Tensor, Tensor]:
        return batch["input_ids"], nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)

    monitor = RelativeFlatnessMonitor(inputs_and_targets=shifted)
    logged = validate(module, data, monitor)
    features, logits = _logits(module, next(iter(loader(data, len(data)))), module.model.lm_head)
    features, logits = (part[:, :-1].flatten(0, 1) for part in (features, logits))
    assert module.model.lm_head.weight is module.model.transformer.wte.weight
    assert monitor.head_name == "model.lm_head"
    expected = kappa(features, module.model.lm_head.weight.detach(), logits)
    assert logged["flatness/relative_flatness"] == pytest.approx(float(expected.mean()), rel=1e-4)


class Pictures(LightningModule):
    """Returns a ``ModelOutput``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {name: BERT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_labels")}
        config = transformers.ViTConfig(image_size=16, patch_size=8, intermediate_size=24, **sizes)
        self.model = transformers.ViTForImageClassification(config)

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def test_image_classifier_that_returns_a_model_output() -> None:
    module, data = Pictures(), images(16)
    message = (
        r"returned ImageClassifierOutput instead of logits; pass `logits_fn=lambda module, x: module\(x\)\['logits'\]`"
    )
    for monitor in (AttackMonitor, AttackTrajectoryMonitor, HeadScalingMonitor):
        with pytest.raises(ValueError, match=message):
            validate(module, data, monitor(epsilon=EPSILON))
    features: list[Tensor] = []
    module.eval()
    with (
        torch.no_grad(),
        module.model.classifier.register_forward_hook(lambda _, args, __: features.append(args[0])),
    ):
        logits = module(torch.stack([picture for picture, _ in data])).logits
    expected = kappa(features[0], module.model.classifier.weight.detach(), logits)
    logits_fn = lambda one, x: one(x)["logits"]  # noqa: E731
    check_everything(module, data, expected, logits, monitors(logits_fn=logits_fn))
