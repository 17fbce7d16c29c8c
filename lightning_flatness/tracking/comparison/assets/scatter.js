// Last values of the runs, one quantity over another.
function newCard() {
  return document.getElementById("scatter-card").content.cloneNode(true).querySelector("figure");
}

function fill(select, chosen) {
  for (const [key, { title }] of Object.entries(page.axes)) {
    const option = document.createElement("option");
    option.value = key;
    option.textContent = title === key ? key : `${title} (${key})`;
    option.selected = key === chosen;
    select.append(option);
  }
}

// What is not above 0 is put at the left or lower edge of a logarithmic axis, and the note says so.
function onAxis({ log, values }) {
  const all = numbers(values);
  if (!log) return { drawn: all, edge: [] };
  const floor = Math.min(...all.filter((value) => value > 0 && Number.isFinite(value))) / 10;
  const edge = page.runs.map((_, run) => run).filter((run) => all[run] <= 0 && Number.isFinite(all[run]));
  return { drawn: all.map((value) => (value <= 0 && Number.isFinite(floor) ? floor : value)), edge };
}

function scatterFigure(xkey, ykey) {
  const [x, y] = [page.axes[xkey], page.axes[ykey]];
  const [across, up] = [onAxis(x), onAxis(y)];
  const there = page.runs.map((_, run) => Number.isFinite(across.drawn[run]) && Number.isFinite(up.drawn[run]));
  const places = page.runs.map((_, run) => run).filter((run) => there[run]);
  const missing = page.runs.filter((_, run) => !there[run]).map((run) => run.name);
  const edge = [...new Set([...across.edge, ...up.edge])].filter((run) => there[run]).map((run) => page.runs[run].name);
  return {
    title: `${y.title} over ${x.title}`,
    traces: places.map((run) => ({ ...pointTrace(run, across.drawn[run], up.drawn[run], x, y), textposition: labelPlace(run, across.drawn, places, x.log) })),
    layout: layoutOf(
      axis(axisTitle(x), x.log, x.log ? decades([across.drawn]) : shareRange(x.share)),
      axis(axisTitle(y), y.log, y.log ? decades([up.drawn]) : shareRange(y.share)),
      `${xkey} ${ykey}`,
    ),
    notes: [
      ...(edge.length ? [`Not above 0, drawn at the edge of a logarithmic axis: ${listed(edge)}.`] : []),
      ...(missing.length ? [`Without a finite value of both: ${listed(missing)}.`] : []),
    ],
  };
}

// Names stand towards the middle, so that none is cut off.
function labelPlace(run, values, places, logarithmic) {
  const heights = places.map((place) => (logarithmic ? Math.log10(values[place]) : values[place]));
  const [low, high] = [Math.min(...heights), Math.max(...heights)];
  const share = high > low ? (heights[places.indexOf(run)] - low) / (high - low) : 0.5;
  const side = share < 0.3 ? "right" : share > 0.7 ? "left" : "center";
  return `${page.runs[run].alarmed ? "bottom" : "top"} ${side}`;
}

function axisTitle({ title, unit }) {
  return unit && !title.includes(unit) ? `${title} (${unit})` : title;
}

function pointTrace(place, x, y, xaxis, yaxis) {
  const run = page.runs[place];
  const colour = colours[`run-${run.colour}`];
  const labelled = run.alarmed || page.runs.length <= (matchMedia("(max-width: 40rem)").matches ? MANY_LABELS_ON_A_PHONE : MANY_RUNS);
  return {
    type: "scatter", name: shownName(run), x: [x], y: [y], visible: !hidden.has(place), uid: String(place),
    mode: labelled ? "markers+text" : "markers", text: [shortened(run)],
    textfont: { size: run.alarmed ? 13 : 11, color: run.alarmed ? colours["run-alarm"] : colours.text }, cliponaxis: false,
    marker: run.alarmed
      ? { symbol: "x-thin", size: 15, color: colour, line: { width: 4, color: colour } }
      : { symbol: run.symbol, size: 11, color: colour, line: { width: 1, color: colours.card } },
    customdata: [[String(numbers(xaxis.values)[place]), String(numbers(yaxis.values)[place]), literal(xaxis.title), literal(yaxis.title)]],
    hovertemplate: "<b>%{fullData.name}</b><br>%{customdata[2]}: %{customdata[0]}<br>%{customdata[3]}: %{customdata[1]}<extra></extra>",
  };
}

function shortened(run) {
  const text = run.alarmed ? `⚠ ${run.name}` : run.name;
  return literal(text.length > 28 ? `${text.slice(0, 27)}…` : text);
}

function prepareScatters() {
  const box = document.getElementById("scatters");
  for (const pair of page.scatters) {
    const card = newCard();
    const [xselect, yselect] = card.querySelectorAll("select");
    fill(xselect, pair[0]);
    fill(yselect, pair[1]);
    box.append(card);
    const div = card.querySelector(".plot");
    const heading = () => {
      const title = `${page.axes[yselect.value].title} over ${page.axes[xselect.value].title}`;
      card.querySelector("h3").textContent = title;
      card.querySelector(".png").setAttribute("aria-label", `Save as PNG: ${title}`);
    };
    heading();
    watch(div, () => scatterFigure(xselect.value, yselect.value));
    card.addEventListener("change", () => { heading(); redraw([div]); });
  }
}
