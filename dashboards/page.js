// What the report does in the browser: draw the charts as they come into view, in the colours of the reader's system,
// and keep them fitting; legends, the text under the pointer, and the trial that the reader chose; sort and filter the
// leaderboard; keep all of that in the address while a sweep runs and the page is loaded again.
"use strict";
const $ = (id) => document.getElementById(id);
const json = (id) => JSON.parse($(id).textContent);

// --- what the reader has set, in the part of the address after #
const state = new URLSearchParams(location.hash.slice(1));
function remember(name, value) {
  if (value === null || value === "") state.delete(name);
  else state.set(name, value);
  history.replaceState(null, "", state.size ? "#" + state : location.pathname + location.search);
}

// --- the data: gzip in base64
async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };
function columnsOf(bytes) {
  let place = bytes.indexOf(10) + 1;
  const heads = JSON.parse(new TextDecoder().decode(bytes.subarray(0, place)));
  return heads.map(([kind, scale, size]) => {
    const width = Number(kind[1]), count = size / width, whole = new Uint8Array(size);
    for (let byte = 0; byte < width; byte++)
      for (let index = 0; index < count; index++) whole[index * width + byte] = bytes[place++];
    const values = new ARRAYS[kind](whole.buffer);
    return scale === 1 ? values : Float64Array.from(values, (value) => value * scale);
  });
}
const number = (count, word) => `${count.toLocaleString("en-US")} ${word}${count === 1 ? "" : "s"}`;
let columns = [], trials = null, places = new Map();
function headOf(trial, epoch) {
  const index = places.get(trial);
  const named = safe(trials.labels?.[index] ?? `trial ${trial}`); // of several sweeps each trial has a name
  const place = epoch === undefined ? named : `${named}, epoch ${Number(epoch.toFixed(3))}`;
  if (index === undefined) return place;
  const words = trials.names.map((name, column) => [name, trials.words[column][index]]);
  const setting = words.filter(([, word]) => word !== "\u2013").map(([name, word]) => `${safe(name)} ${safe(word)}`);
  const lines = [];
  for (const part of setting) {
    if (lines.length && lines.at(-1).length + part.length < 44) lines.push(`${lines.pop()}, ${part}`);
    else lines.push(part);
  }
  return [`<b>${place}</b>: ${trials.worth[index]}`, ...lines].join("<br>");
}
// Plotly reads labels as HTML, and so do we where we hand it text from outside.
const safe = (text) => text.replace(/[&<>]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[letter]);

// --- colours
const dark = json("dark"), scheme = matchMedia("(prefers-color-scheme: dark)");
function revived(value) {
  if (typeof value === "string") return scheme.matches ? dark[value] ?? value : value;
  if (Array.isArray(value)) return value.map(revived);
  if (value === null || typeof value !== "object") return value;
  if ("column" in value) {
    const column = columns[value.column], { width } = value;
    return width ? Array.from({ length: column.length / width }, (_, row) => column.subarray(row * width, (row + 1) * width)) : column;
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revived(item)]));
}

// --- charts
const drawn = new Map();
const axes = (layout, trace) => [layout[trace.xaxis?.replace("x", "xaxis") ?? "xaxis"], layout[trace.yaxis?.replace("y", "yaxis") ?? "yaxis"]];
const MOST_MARKERS = 3000;
const RING = { symbol: "circle-open", size: 17, line: { width: 2.5 } };

function figureOf(chart) {
  const figure = revived(json(chart.id + "-data"));
  const ink = figure.layout.template.layout.font.color;
  for (const trace of figure.data) {
    // Drawn only where the reader zooms in: `whole` holds what there is.
    if (trace.meta?.on_zoom) {
      trace.whole = { x: trace.x, y: trace.y, customdata: trace.customdata, epoch: trace.meta.epoch };
      trace.x = trace.y = trace.customdata = [];
      continue;
    }
    label(trace, trace.customdata, trace.meta?.epoch);
    // Cells hold the logarithm of their number.
    if (trace.meta?.density) trace.text = trace.z.map((row) => Array.from(row, (cell) => (Number.isNaN(cell) ? "" : Math.round(10 ** cell).toLocaleString("en"))));
  }
  // One more trace a panel: the points of the trial that the reader chose.
  const panels = new Map(figure.data.map((trace) => [`${trace.xaxis} ${trace.yaxis}`, trace]));
  figure.rings = [...panels.values()].filter((trace) => trace.type !== "bar").map((trace, index) => ({
    xaxis: trace.xaxis, yaxis: trace.yaxis, index: figure.data.length + index,
  }));
  for (const { xaxis, yaxis } of figure.rings)
    figure.data.push({ type: "scatter", mode: "markers", x: [], y: [], xaxis, yaxis, marker: { ...RING, color: ink, line: { ...RING.line, color: ink } }, hoverinfo: "skip", showlegend: false });
  return figure;
}
function label(trace, numbers, epochs) {
  if (!trace.hovertemplate?.includes("%{hovertext}") || !numbers) return;
  trace.hovertext = Array.from(numbers, (trial, index) => headOf(trial, epochs?.[index]));
}
async function draw(chart) {
  drawn.set(chart, null);
  const figure = figureOf(chart), config = JSON.parse(chart.dataset.config);
  const meta = figure.layout.meta ?? {};
  const mode = () => (chart.clientWidth < 640 ? "narrow" : "wide");
  let now = null;
  const arrange = () => {
    if (!chart.clientWidth) return; // it is not shown
    if (now === mode() && chart.clientWidth === chart.layout.width) return;
    const layout = now === mode() ? {} : meta[mode()];
    now = mode();
    if (layout?.height) chart.style.minHeight = layout.height + "px";
    Plotly.relayout(chart, { ...layout, width: chart.clientWidth });
  };
  if (meta[mode()]) apply(figure.layout, meta[mode()]);
  now = mode();
  figure.layout.width = chart.clientWidth;
  if (figure.layout.height) chart.style.minHeight = figure.layout.height + "px";
  restoreZoom(chart, figure.layout);
  await Plotly.newPlot(chart, figure.data, figure.layout, config);
  chart.figure = figure;
  drawn.set(chart, figure);
  legend(chart, figure);
  chart.on("plotly_relayout", (change) => { keepZoom(chart, change); detail(chart); });
  chart.on("plotly_click", ({ points }) => { const trial = points[0].customdata; if (Number.isInteger(trial) && trial >= 0) choose(trial, chart); });
  detail(chart);
  ring(chart);
  if (!chart.watched) { chart.watched = new ResizeObserver(arrange); }
  chart.watched.disconnect();
  chart.watched = new ResizeObserver(arrange);
  chart.watched.observe(chart);
}
function apply(layout, paths) {
  for (const [path, value] of Object.entries(paths)) {
    const names = path.split(/[.[\]]+/).filter(Boolean), last = names.pop();
    names.reduce((place, name) => (place[name] ??= {}), layout)[last] = value;
  }
}
// Densities give way to markers where few points are in view.
function detail(chart) {
  const figure = chart.figure, whole = figure.data.filter((trace) => trace.whole);
  if (!whole.length) return;
  for (const xaxis of new Set(whole.map((trace) => trace.xaxis))) {
    const traces = whole.filter((trace) => trace.xaxis === xaxis);
    const [x, y] = axes(chart.layout, traces[0]);
    const inside = traces.map(({ whole: { x: xs, y: ys } }) => {
      const found = [];
      for (let index = 0; index < xs.length; index++)
        if (xs[index] >= x.range[0] && xs[index] <= x.range[1] && ys[index] >= y.range[0] && ys[index] <= y.range[1]) found.push(index);
      return found;
    });
    const few = inside.reduce((sum, found) => sum + found.length, 0) <= MOST_MARKERS;
    if (!few && !chart["few" + xaxis]) continue;
    chart["few" + xaxis] = few;
    traces.forEach((trace, place) => {
      const pick = (values) => (few ? inside[place].map((index) => values[index]) : []);
      const shown = { x: pick(trace.whole.x), y: pick(trace.whole.y), customdata: pick(trace.whole.customdata) };
      const text = few ? shown.customdata.map((trial, index) => headOf(trial, trace.whole.epoch[inside[place][index]])) : [];
      Plotly.restyle(chart, { x: [shown.x], y: [shown.y], customdata: [shown.customdata], hovertext: [text] }, [figure.data.indexOf(trace)]);
    });
    const cells = figure.data.flatMap((trace, index) => (trace.meta?.density && trace.xaxis === xaxis ? [index] : []));
    Plotly.restyle(chart, { opacity: few ? 0.25 : 1 }, cells);
  }
}
// --- zoom
function keepZoom(chart, change) {
  const ranges = [];
  for (const name of Object.keys(chart.layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
    const axis = chart.layout[name], home = chart.homes?.[name];
    if (axis.range && home && axis.range.some((end, index) => Math.abs(end - home[index]) > 1e-9)) ranges.push(`${name}:${axis.range.map((end) => Number(end.toPrecision(6))).join(":")}`);
  }
  if (Object.keys(change).some((key) => /range/.test(key))) remember("zoom-" + chart.id, ranges.join(" "));
}
function restoreZoom(chart, layout) {
  chart.homes = {};
  for (const [name, axis] of Object.entries(layout)) if (/^[xy]axis\d*$/.test(name) && axis.range) chart.homes[name] = [...axis.range];
  for (const part of (state.get("zoom-" + chart.id) ?? "").split(" ").filter(Boolean)) {
    const [name, low, high] = part.split(":");
    if (layout[name]) { layout[name].range = [Number(low), Number(high)]; layout[name].autorange = false; }
  }
}
// --- legends, as text that breaks into lines
const SHAPES = {
  circle: "M8 3.5a4.5 4.5 0 1 0 .01 0z", square: "M3.5 3.5h9v9h-9z", diamond: "M8 1.5L14.5 8L8 14.5L1.5 8z",
  star: "M8 1l2 4.8 5.2.4-4 3.4 1.3 5L8 11.9 3.5 14.6l1.3-5-4-3.4 5.2-.4z", "triangle-up": "M8 2.5L14 13H2z", "triangle-down": "M8 13.5L14 3H2z",
  pentagon: "M8 2l6 4.4-2.3 7H4.3L2 6.4z", x: "M3 3L13 13M13 3L3 13", "line-ns": "M8 2V14",
};
function sample(trace) {
  const symbol = [].concat(trace.marker?.symbol ?? "circle")[0], shape = symbol.replace("-open", ""), open = symbol.includes("-open") || shape === "x";
  const colour = trace.meta?.colour ?? [].concat(trace.marker?.color ?? trace.line?.color)[0] ?? trace.line?.color;
  const parts = [];
  if (trace.mode?.includes("lines")) parts.push(`<path d="M0 8H16" fill="none" stroke="${trace.line.color}" stroke-width="2" stroke-dasharray="${{ dash: "4 2", dot: "1.5 2", dashdot: "4 2 1.5 2" }[trace.line.dash] ?? "none"}"/>`);
  if (!trace.mode || trace.mode.includes("markers")) {
    const ink = trace.marker?.line?.color ?? "none";
    const path = trace.type === "heatmap" || trace.type === "bar" ? SHAPES.square : SHAPES[shape] ?? SHAPES.circle;
    parts.push(`<path d="${path}" fill="${open ? "none" : colour}" stroke="${open ? colour : ink}" stroke-width="${open ? 1.6 : 0.8}"/>`);
  }
  return `<svg viewBox="0 0 16 16" aria-hidden="true">${parts.join("")}</svg>`;
}
function legend(chart, figure) {
  const box = $(chart.id + "-legend"), groups = new Map();
  figure.data.forEach((trace, index) => {
    const group = trace.legendgroup ?? trace.name ?? index;
    if (!groups.has(group)) groups.set(group, { indices: [], shown: null });
    groups.get(group).indices.push(index);
    if (trace.showlegend !== false && trace.name) groups.get(group).shown ??= trace;
  });
  const entries = [...groups.values()].filter((group) => group.shown).sort((a, b) => (a.shown.legendrank ?? 1000) - (b.shown.legendrank ?? 1000));
  const off = new Set((state.get("off-" + chart.id) ?? "").split("|").filter(Boolean));
  box.replaceChildren(...entries.map(({ indices, shown }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = sample(shown);
    // Plotly's names are HTML that we made safe; here they are text.
    button.append(new DOMParser().parseFromString(shown.name, "text/html").body.textContent);
    const show = (visible) => { button.setAttribute("aria-pressed", String(visible)); Plotly.restyle(chart, { visible }, indices); };
    button.setAttribute("aria-pressed", "true");
    if (off.has(shown.name)) show(false);
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      show(visible);
      if (visible) off.delete(shown.name); else off.add(shown.name);
      remember("off-" + chart.id, [...off].join("|"));
    });
    return button;
  }));
}
// --- the chosen trial, in all charts and in the table
function choose(trial, from = null) {
  const same = state.get("trial") === String(trial);
  remember("trial", same ? null : trial);
  showChosen(from);
}
function showChosen(from = null) {
  const chosen = state.has("trial") ? Number(state.get("trial")) : null, box = $("chosen");
  for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
  const row = chosen === null ? null : document.querySelector(`tr[data-trial="${chosen}"]`);
  if (row) {
    row.classList.add("chosen");
    if (from) { const box = row.closest(".scroll"); box.scrollTop = row.offsetTop - box.clientHeight / 2; }
  }
  box.hidden = chosen === null;
  if (chosen !== null) {
    box.innerHTML = headOf(chosen).replaceAll("<br>", ", ");
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Clear";
    close.addEventListener("click", () => choose(chosen));
    box.append(" ", close);
  }
  for (const chart of drawn.keys()) if (drawn.get(chart)) ring(chart);
}
function ring(chart) {
  const figure = chart.figure, chosen = state.has("trial") ? Number(state.get("trial")) : null;
  if (chosen === null && !chart.ringed) return;
  chart.ringed = chosen !== null;
  for (const { xaxis, yaxis, index } of figure.rings) {
    const x = [], y = [];
    for (const trace of chosen === null ? [] : figure.data) {
      if (trace.xaxis !== xaxis || trace.yaxis !== yaxis) continue;
      const { x: xs, y: ys, customdata } = trace.whole ?? trace;
      if (customdata?.length !== xs?.length) continue;
      for (let place = 0; place < xs.length; place++) if (customdata[place] === chosen) { x.push(xs[place]); y.push(ys[place]); }
    }
    Plotly.restyle(chart, { x: [x], y: [y] }, [index]);
  }
}
// --- the leaderboard
function table() {
  const board = document.querySelector("table.sortable");
  if (!board) return;
  const body = board.tBodies[0], heads = [...board.tHead.rows[0].cells], rows = [...body.rows];
  const order = (column, sign) => {
    for (const other of heads) other.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const keys = new Map(rows.map((row) => {
      const cell = row.cells[column], text = cell.dataset.sort ?? (cell.firstElementChild?.tagName === "SMALL" ? "" : cell.firstChild?.textContent ?? "");
      return [row, text.trim()];
    }));
    const compare = (a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)], none = (text) => text === "\u2013" || text === "";
      if (none(x) || none(y)) return none(x) - none(y);
      const [p, q] = [Number(x), Number(y)];
      return sign * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
    };
    body.append(...rows.sort(compare));
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    order(column, sign);
    remember("sort", `${column}:${sign}`);
  }));
  const field = document.querySelector(".filter input"), count = document.querySelector(".filter output");
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase() + (row.querySelector("[title=certified]") ? " certified" : "")]));
  const filter = () => {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !wanted.every((word) => words.get(row).includes(word));
      shown += !row.hidden;
    }
    count.textContent = wanted.length ? `${shown} of ${number(rows.length, "row")}` : number(rows.length, "row");
    remember("filter", field.value);
  };
  field.addEventListener("input", filter);
  field.value = state.get("filter") ?? "";
  if (field.value) filter();
  if (state.has("sort")) { const [column, sign] = state.get("sort").split(":").map(Number); if (heads[column]) order(column, sign); }
  for (const row of rows) {
    row.addEventListener("click", () => choose(Number(row.dataset.trial)));
    const head = row.querySelector("th");
    head.tabIndex = 0;
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(Number(row.dataset.trial)); });
  }
}
// --- while the sweep runs
function reloads() {
  let last = Date.now();
  for (const kind of ["pointermove", "keydown", "wheel", "touchmove"]) addEventListener(kind, () => (last = Date.now()), { passive: true });
  setInterval(() => { if (!document.hidden && Date.now() - last > 15_000) location.reload(); }, 60_000);
}
async function begin() {
  [columns, trials] = [columnsOf(await unpacked("columns")), JSON.parse(new TextDecoder().decode(await unpacked("trials")))];
  places = new Map(trials.trial.map((trial, index) => [trial, index]));
  const charts = [...document.querySelectorAll(".chart")];
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting && !drawn.has(target)) draw(target);
  }, { rootMargin: "200px" });
  for (const chart of charts) seen.observe(chart);
  addEventListener("beforeprint", () => { for (const chart of charts) if (!drawn.has(chart)) draw(chart); });
  scheme.addEventListener("change", () => { for (const chart of drawn.keys()) draw(chart); });
  showChosen();
}
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", (event) => {
  event.preventDefault(); // what the reader has set stands where the address would name the place
  $(link.hash.slice(1)).scrollIntoView();
});
table();
if (document.body.dataset.state === "running") reloads();
begin();
