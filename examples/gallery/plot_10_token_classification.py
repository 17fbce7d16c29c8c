"""
Token classification: which characters is the network torn about?
=================================================================

A prediction for every character, batches with padding, and positions that do not count. The head then sees a row per
character; leading dimensions are flattened, and what has the label ``ignore_index`` is left out. The text is real:
lines of Python's own standard library, whose tokeniser gives the labels.
"""

import inspect
import io
import statistics
import textwrap
import tokenize
from keyword import iskeyword

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.functional import relative_flatness

plt.style.use("tableau-colorblind10")

# %%
# Lines of code, a label per character
# ------------------------------------
#
# Spaces, and the padding behind the end of a line, carry the label -100. Keywords, names, numbers, strings, comments
# and operators are to be told apart, also where the line alone does not say: inside a docstring everything is a string.

KINDS = ("keyword", "name", "number", "string", "comment", "operator")
IGNORED, LENGTH = -100, 80
_NUMBERS = {tokenize.NUMBER: 2, tokenize.STRING: 3, tokenize.COMMENT: 4, tokenize.OP: 5}


def labelled_lines(source: str) -> tuple[Tensor, Tensor]:
    """Return the characters of every line that is not empty, and their kinds."""
    lines = source.splitlines()
    kinds = [[IGNORED] * len(line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = _NUMBERS.get(token.type)
        if token.type == tokenize.NAME:
            kind = 0 if iskeyword(token.string) else 1
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1) if kind is not None else ():
            for place in range(start if row == first else 0, end if row == last else len(lines[row - 1])):
                kinds[row - 1][place] = IGNORED if lines[row - 1][place].isspace() else kind
    kept = [row for row, line in enumerate(lines) if line.strip() and len(line) <= LENGTH and line.isascii()]
    characters = [[*map(ord, lines[row].ljust(LENGTH))] for row in kept]
    targets = [kinds[row] + [IGNORED] * (LENGTH - len(lines[row])) for row in kept]
    return torch.tensor(characters), torch.tensor(targets)


class Tagger(LightningModule):
    """A transformer encoder of two layers over characters."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, width)
        self.places = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(KINDS))

    def features(self, characters: Tensor) -> Tensor:
        """Return what enters the head, shape ``(lines, characters, width)``."""
        return self.encoder(self.characters(characters) + self.places.weight)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of every character."""
        return self.head(self.features(characters))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of the characters that count."""
        return nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=IGNORED)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Run the model; the monitor looks on."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


# %%
# Train and measure
# -----------------
#
# The monitor is told the loss, because only that knows which positions count; ``num_classes=`` gives κ of each kind.

seed_everything(0, verbose=False)
training = TensorDataset(*labelled_lines(inspect.getsource(statistics)))
validation = TensorDataset(*labelled_lines(inspect.getsource(textwrap)))
loss = nn.CrossEntropyLoss(ignore_index=IGNORED)
monitor = RelativeFlatnessMonitor(loss=loss, num_classes=len(KINDS), top_eigenvalue_samples=0, summary=False)
model = Tagger()
trainer = Trainer(
    max_epochs=10,
    callbacks=[monitor],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(training, 32, shuffle=True), DataLoader(validation, 64))

# %%
# Where it is torn
# ----------------
#
# Above: κ of each kind, over the epochs. Below: a few lines that the network has not been trained on, each character
# shaded by its own κ, from :func:`~lightning_flatness.functional.relative_flatness`; wrong ones are underlined.
#
# The mean is sharpest for kinds that only context tells, such as keywords, which are made of the same letters as names.
# Comments and strings are long, and what stands in the middle of one is easy: they are flat. For cross-entropy, κ does
# not look at the label. It says where the network hesitates, and not where it is wrong: an underlined character on a
# light ground is an error made with confidence, and no flatness of the loss warns of it.

model.eval()
characters, targets = validation.tensors
with torch.no_grad():
    phi = model.features(characters).flatten(0, 1)
    logits = model.head(phi)
    kappa = relative_flatness(phi, model.head.weight, logits).log10().view_as(characters)
wrong = logits.argmax(1).view_as(targets) != targets
counted = targets != IGNORED
print(f"accuracy {1 - wrong[counted].double().mean():.1%} of {int(counted.sum())} characters")

history = monitor.history()
figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 7), layout="constrained", height_ratios=(1, 1.2))
for (index, kind), marker in zip(enumerate(KINDS), "os^Dv*", strict=True):
    values = [row[f"flatness/relative_flatness_class_{index}"] for row in history]
    upper.plot([row["epoch"] for row in history], values, marker=marker, label=kind)
upper.set(yscale="log", xlabel="epoch", ylabel="relative flatness κ, mean", title="κ of six kinds of characters")
upper.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
upper.grid(visible=True, alpha=0.25)

shown = range(len(targets) - 12, len(targets))
shades = torch.where(counted, kappa, torch.nan)[-12:]
image = lower.imshow(shades, cmap="Blues", aspect="auto", vmin=-2, vmax=2)
lower.set(xticks=[], yticks=[], xlim=(-0.5, 62), title="Lines it has not seen, shaded by κ; errors are underlined")
for line, row in enumerate(shown):
    for place, code in enumerate(characters[row].tolist()):
        if counted[row, place]:
            color = "w" if shades[line, place] > 0.8 else "k"
            lower.text(place, line, chr(code), ha="center", va="center", color=color, family="monospace")
            if wrong[row, place]:
                lower.plot([place - 0.4, place + 0.4], [line + 0.4] * 2, color="C5", linewidth=2)
figure.colorbar(image, ax=lower, label="log₁₀ κ (dark: sharp)")
plt.show()
