"""
A language model: the flatness of a head of thousands of words
==============================================================

The last layer of a language model is its largest, and often its embedding at the same time. Relative flatness of such a
head needs no Hessian and no product of vocabulary by vocabulary: one pass over the logits that the model computes
anyhow. The model is a small GPT with tied embeddings, the text Python's own language reference, which ships with Python
as ``pydoc_data``.
"""

import re
from collections import Counter
from math import log
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.functional import relative_flatness

plt.style.use("tableau-colorblind10")

# %%
# Text and model
# --------------
#
# Every word and every punctuation mark is a token. The head has no bias and the weight of the embedding.

LENGTH, WIDTH = 32, 64
words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)))
numbers = {word: number for number, (word, _) in enumerate(Counter(words).most_common())}
text = torch.tensor([numbers[word] for word in words])
parts = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0))
held_out, training = parts[order[:96]], parts[order[96:]]


class SmallGPT(LightningModule):
    """Two causal transformer layers; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(numbers), WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(numbers), bias=False)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        self.head.weight = self.words.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def features(self, tokens: Tensor) -> Tensor:
        """Return what enters the head, shape ``(batch, length, width)``."""
        return self.blocks(self.words(tokens) + self.places.weight, mask=self.mask, is_causal=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next word at every place."""
        return self.head(self.features(tokens))

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the next words."""
        logits, target = self(tokens), next_words(tokens)[1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        """Log the loss; the monitor looks on."""
        self.log("val_loss", self.training_step(tokens, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


# %%
# Shifted targets
# ---------------
#
# A batch holds tokens only. ``inputs_and_targets`` says what is predicted: the next word; the last place has none, and
# gets the label -100, which the cross-entropy ignores. The Hessian of this head, had anybody stored it, is printed
# below; the monitor keeps sums.


def next_words(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens, and the token after each."""
    return tokens, nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)


seed_everything(0, verbose=False)
model = SmallGPT()
monitor = RelativeFlatnessMonitor(inputs_and_targets=next_words, top_eigenvalue_samples=0, summary=False)
trainer = Trainer(
    max_epochs=8,
    limit_train_batches=30,
    callbacks=[monitor],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(training, 32, shuffle=True), DataLoader(held_out, 32))
parameters = model.head.weight.numel()
print(f"loss {trainer.callback_metrics['val_loss']:.2f} nats; {log(len(numbers)):.2f} for a model that knows nothing")
print(f"{len(numbers)} words, {parameters:,} weights, a Hessian of {parameters**2 * 4 / 1e9:,.0f} GB in float32")


# %%
# Unsure is not wrong
# -------------------
#
# Left: the curves of the training. Right: every word of the held-out text, by its κ and by how surprised the model is
# of the word that follows.
#
# At the start all words are equally likely, and a head with small weights is flat because there is nothing in it: small
# κ is no merit by itself. As soon as it has learned something κ grows, and what then becomes flat again are the places
# where the model is sure. Most of those it gets right; the ones on the upper left it does not: flat, confident and
# surprised. κ does not see the label, and cannot tell these from those.

model.eval()
target = next_words(held_out)[1].flatten()
with torch.no_grad():
    phi = model.features(held_out).flatten(0, 1)[target >= 0]
    logits = model.head(phi)
    kappa = relative_flatness(phi, model.head.weight, logits)
surprise = nn.functional.cross_entropy(logits, target[target >= 0], reduction="none")

history = monitor.history()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
epochs = [row["epoch"] for row in history]
for name, marker, label in (
    ("relative_flatness", "o", "mean"),
    ("median", "s", "median"),
    ("p90", "^", "90th percentile"),
):
    left.plot(epochs, [row[f"flatness/{name}"] for row in history], marker=marker, label=label)
left.set(xlabel="epoch of 30 steps", ylabel="relative flatness κ", title="κ while the model learns")
left.grid(visible=True, alpha=0.25)
left.legend(frameon=False)
image = right.hexbin(kappa, surprise, xscale="log", gridsize=32, bins="log", mincnt=1, cmap="cividis")
right.set(xlabel="relative flatness κ of a place (small is flat)", ylabel="surprise at the next word, in nats")
right.set_title("Flat places can be wrong")
figure.colorbar(image, ax=right, label="places")
plt.show()
