// What the switches and buttons of the page do.
function say(words) {
  document.getElementById("said").textContent = words;
}

function showRuns(shown) {
  for (const chip of document.querySelectorAll(".chip")) {
    const place = Number(chip.dataset.run);
    const pressed = shown(place);
    hidden[pressed ? "delete" : "add"](place);
    chip.setAttribute("aria-pressed", String(pressed));
  }
  redraw();
}

function prepareTheme() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const adopt = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    readColours();
    redraw();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    adopt();
  });
  system.addEventListener("change", adopt);
  adopt();
}

function prepareButtons() {
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const plot = button.closest("figure")?.querySelector(".plot");
    if (button.matches(".chip")) {
      const place = Number(button.dataset.run);
      showRuns((run) => (run === place ? hidden.has(run) : !hidden.has(run)));
    } else if (button.matches(".png") && builders.has(plot)) {
      savePng(plot);
    } else if (button.matches(".log")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      redraw([plot]);
    }
  });
  document.getElementById("all").addEventListener("click", () => showRuns(() => true));
  document.getElementById("none").addEventListener("click", () => showRuns(() => false));
}

function prepareEmphasis() {
  const runOf = ({ target }) => target.closest("[data-run]")?.dataset.run ?? null;
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, (event) => emphasise(runOf(event)));
  document.addEventListener("focusout", () => emphasise(null));
}

function isOpen(div) {
  return !div.closest("details:not([open])");
}

prepareTheme();
prepareTables();
prepareButtons();
prepareEmphasis();
// Plotly is read last, so that table and switches work before it.
addEventListener("DOMContentLoaded", () => {
  prepareScatters();
  prepareFigures();
});
addEventListener("beforeprint", () => [...builders.keys()].filter(isOpen).forEach(render));
