// Curves and axes as Plotly wants them, in the colours of the style sheet.
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const MANY_RUNS = 20;
const MANY_LABELS_ON_A_PHONE = 4;
const MANY_POINTS = 16;
const CONFIG = { displayModeBar: false, responsive: true, typesetMath: false, showTips: false };
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;
let colours = {};

function readColours() {
  const names = ["text", "muted", "line", "grid", "card", "alarm", "run-alarm"].concat([0, 1, 2, 3, 4, 5].map((i) => `run-${i}`));
  const seen = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  colours = Object.fromEntries(seen);
}

function shownName(run) {
  return literal(run.alarmed ? `⚠ ${run.name}` : run.name);
}

function curveTrace(place, x, y, words) {
  const run = page.runs[place];
  const colour = colours[`run-${run.colour}`];
  const whole = y.every(Number.isFinite) && y.length > 1;
  const bare = whole && !run.alarmed && page.runs.length > MANY_RUNS;
  return {
    type: "scatter", name: shownName(run), x, y, text: Array.from(y, String), customdata: words.ticks.length ? words.ticks : Array.from(x, String),
    mode: bare ? "lines" : "lines+markers", connectgaps: false, visible: !hidden.has(place), uid: String(place),
    line: { color: colour, dash: DASHES[run.dash], width: run.alarmed ? 2.5 : page.runs.length > MANY_RUNS ? 1 : 1.75 },
    marker: { symbol: run.symbol, color: colour, size: run.alarmed ? 8 : 6, maxdisplayed: whole && y.length > MANY_POINTS ? 12 : 0 },
    hovertemplate: `<b>%{fullData.name}</b><br>${words.xlabel ? `${words.xlabel} ` : ""}%{customdata}<br>${words.unit ? `${words.unit} ` : ""}%{text}<extra></extra>`,
  };
}

function axis(title, logarithmic, more) {
  return {
    title: { text: literal(title), standoff: 8, font: { size: 12, color: colours.muted } }, type: logarithmic ? "log" : "linear",
    gridcolor: colours.grid, linecolor: colours.line, tickcolor: colours.line, zerolinecolor: colours.line, zeroline: !logarithmic,
    tickfont: { size: 11, color: colours.muted }, automargin: true, exponentformat: "power", ...more,
  };
}

// One tick per decade, unless that is hardly any or far too many.
function decades(curves) {
  const positive = curves.flatMap((y) => Array.from(y)).filter((value) => value > 0 && Number.isFinite(value));
  const logs = positive.map(Math.log10);
  const span = logs.reduce((a, b) => Math.max(a, b), -Infinity) - logs.reduce((a, b) => Math.min(a, b), Infinity);
  return span > 1.5 && span < 7 ? { dtick: 1 } : {};
}

function wholeEpochs(x) {
  const whole = x.every((curve) => curve.every(Number.isInteger));
  const largest = Math.max(...x.map((curve) => curve.reduce((a, b) => Math.max(a, b), 0)), 0);
  const smallest = Math.min(...x.map((curve) => curve.reduce((a, b) => Math.min(a, b), Infinity)), largest);
  if (smallest === largest) return { range: [smallest - 0.5, largest + 0.5], dtick: 1 };
  return whole && largest - smallest < 8 ? { dtick: 1 } : {};
}

function shareRange(share) {
  return share ? { range: [-0.03, 1.03] } : {};
}

function layoutOf(xaxis, yaxis, revision) {
  const narrow = matchMedia("(pointer: coarse)").matches;
  return {
    xaxis, yaxis, autosize: true, showlegend: false, hovermode: "closest", dragmode: narrow ? false : "zoom", uirevision: revision,
    margin: { l: 56, r: 12, t: 10, b: 44 }, paper_bgcolor: colours.card, plot_bgcolor: colours.card,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.text },
    hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.text, size: 13 }, align: "left" },
  };
}

function unitTitle(unit) {
  return { "": "", "κ": "κ (small is flat)", share: "share of samples" }[unit] ?? unit;
}
