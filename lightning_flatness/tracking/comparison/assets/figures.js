// Figures are drawn when they come into view, and again when runs, colours or axes have changed.
const builders = new Map();
const inView = new Set();
const outdated = new Set();
const drawn = new Set();
let waiting = false;

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    inView[isIntersecting ? "add" : "delete"](target);
    if (isIntersecting && !drawn.has(target)) outdated.add(target);
  }
  schedule();
}, { rootMargin: "200px 0px" });

function schedule() {
  if (waiting || !outdated.size) return;
  waiting = true;
  // one figure per frame, so that the page answers in between
  requestAnimationFrame(() => setTimeout(() => {
    waiting = false;
    const next = [...outdated].find((div) => inView.has(div)) ?? [...outdated].find((div) => drawn.has(div));
    if (!next) return outdated.clear();
    render(next);
    schedule();
  }));
}

function render(div) {
  outdated.delete(div);
  drawn.add(div);
  const built = builders.get(div)();
  const note = div.parentElement.querySelector(".note");
  note.textContent = built.notes.join(" ");
  note.hidden = !built.notes.length;
  Plotly.react(div, built.traces, built.layout, CONFIG);
}

function redraw(divs = drawn) {
  for (const div of divs) outdated.add(div);
  schedule();
}

// While a run is pointed at, the others fade.
function emphasise(place) {
  for (const div of inView) {
    for (const group of div.querySelectorAll(".scatterlayer .trace")) {
      group.style.opacity = place === null || group.classList.contains(`trace${place}`) ? "" : "0.12";
    }
  }
}

function watch(div, build) {
  builders.set(div, build);
  observer.observe(div);
}

function curveFigure(words, logarithmic) {
  const curves = words.curves.map(([run, x, y]) => ({ run, x: numbers(x), y: numbers(y) }));
  const ticks = { tickvals: words.ticks.map((_, place) => place), ticktext: words.ticks, range: [-0.2, words.ticks.length - 0.8] };
  const more = words.ticks.length ? ticks : words.xlog ? decades(curves.map(({ x }) => x)) : wholeEpochs(curves.map(({ x }) => x));
  return {
    title: words.title,
    traces: curves.map(({ run, x, y }) => curveTrace(run, x, y, words)),
    layout: layoutOf(
      axis(words.xlabel, words.xlog, more),
      axis(unitTitle(words.unit), logarithmic, logarithmic ? decades(curves.map(({ y }) => y)) : shareRange(words.share)),
      String(logarithmic),
    ),
    notes: curveNotes(curves, logarithmic),
  };
}

function curveNotes(curves, logarithmic) {
  const counted = (is) => curves.map(({ run, y }) => [page.runs[run].name, y.filter(is).length]).filter(([, count]) => count);
  const sentence = (found, words) => (found.length ? [`${words}: ${listed(found.map(([name, count]) => `${count} of ${name}`))}.`] : []);
  return [
    ...sentence(counted(Number.isNaN), "Gaps where the value was NaN"),
    ...sentence(counted((value) => Math.abs(value) === Infinity), "Infinite, not drawn"),
    ...(logarithmic ? sentence(counted((value) => value <= 0 && Number.isFinite(value)), "Not above 0, so not on a logarithmic axis") : []),
  ];
}

function fileName(title) {
  return title.toLowerCase().replace(/κ/g, "kappa").replace(/∞/g, "inf").replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 80) || "figure";
}

// On paper there are no switches, so that the picture gets a legend of its own.
function savePng(div) {
  const { traces, layout, title } = builders.get(div)();
  const shown = traces.filter((trace) => trace.visible).map((trace) => ({ ...trace, showlegend: true }));
  const height = Math.max(640, 130 + 21 * shown.length);
  const full = { ...layout, showlegend: true, margin: { l: 80, r: 20, t: 60, b: 60 }, title: { text: literal(title), font: { size: 18 }, x: 0.02, xanchor: "left" } };
  const name = fileName(title);
  return Plotly.downloadImage({ data: shown, layout: full, config: CONFIG }, { format: "png", width: 1100, height, scale: 2, filename: name })
    .then(() => say(`Saved ${name}.png`), (problem) => say(`No picture: ${problem}`));
}

function prepareFigures() {
  for (const div of document.querySelectorAll(".plot[data-figure]")) {
    const words = page.figures[Number(div.dataset.figure)];
    const log = div.parentElement.querySelector(".log");
    watch(div, () => curveFigure(words, log !== null && log.getAttribute("aria-pressed") === "true"));
  }
}
