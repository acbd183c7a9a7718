// Draws the plots and the table from the data in the page; asks no network, and writes words of others as text only.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const timeline = document.getElementById("timeline");
const planned = document.getElementById("planned");
const PAGE = 50; // rows of the table at a time
const SHARES = ["below 25 %", "25 to 50 %", "50 to 75 %", "75 to 90 %", "90 % and more"];
const LIMITS = [0.25, 0.5, 0.75, 0.9, Infinity];
const GIB = 2 ** 30;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const number = (value, digits = 3) =>
  value == null ? "" : value.toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: true });
const percent = (share) => (share == null ? "" : `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`);
const gib = (bytes) => (bytes == null ? "" : (bytes / GIB).toFixed(2));
const asText = (words) => String(words).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // for plotly

// ---- the timeline, with CPUs and memory over the same time ----

function timelineTraces() {
  const those = data.calculations;
  const shade = (one) =>
    one.status === "failed" ? "failed" : one.efficiency == null ? "unknown" : LIMITS.findIndex((limit) => one.efficiency < limit);
  const traces = SHARES.map((name, at) => boxes(name, `eff${at}`, those.filter((one) => shade(one) === at), 1));
  traces.push(boxes("not known", "unknown", those.filter((one) => shade(one) === "unknown"), 1));
  traces.push(boxes("failed", "failed", those.filter((one) => shade(one) === "failed"), 1));
  traces.push(boxes("waited for a CPU", "bad", those.filter((one) => one.queue > 0), (one) => one.queue));
  return traces.filter((trace) => trace.x.length);
}

// One path for all boxes of a colour: ten thousand elements of their own would make every zoom wait.
function boxes(name, colorName, those, share) {
  const x = [], y = [];
  const of = typeof share === "function" ? share : () => share;
  const half = data.rows.length > 64 ? 0.5 : 0.46; // of a row; narrow ones have no room for a gap
  for (const one of those) {
    const end = one.start + one.wall;
    for (const [first, last] of one.rows) {
      const foot = last + half, top = foot - of(one) * (last - first + 2 * half);
      x.push(one.start, end, end, one.start, one.start, null);
      y.push(top, top, foot, foot, top, null);
    }
  }
  return {
    type: "scatter", mode: "none", fill: "toself", hoverinfo: "skip", name, x, y, meta: colorName,
  };
}

function curveTraces() {
  const c = data.curves, wall = data.wall_s;
  const steps = Array.from({ length: c.leased.length }, (_, at) => ((at + 0.5) * wall) / c.points);
  const curve = (name, colorName, x, y, more) => ({
    type: "scatter", mode: "lines", name, x, y, meta: colorName, yaxis: "y2", line: { width: 1.5 },
    hovertemplate: `%{y:.3~g}<extra>${name}</extra>`, ...more,
  });
  const held = (values) => [...values, values[values.length - 1]];
  const times = c.end.length ? [...c.begin, c.end[c.end.length - 1]] : [];
  const traces = [curve("CPUs leased", "leased", steps, c.leased)];
  if (c.end.length) traces.push(curve("CPUs busy", "busy", times, held(c.busy), { fill: "tozeroy", line: { shape: "hv", width: 1.5 } }));
  if (c.end.length && c.waited)
    traces.push(curve("threads waiting for a CPU", "bad", times, held(c.waited), { line: { shape: "hv", width: 1.5 } }));
  // A grant far above what was used would press the curve of memory flat; the table has both.
  if (c.granted && Math.max(...c.granted) <= 5 * Math.max(0, ...c.memory)) traces.push(curve("memory granted", "leased", steps, c.granted.map((b) => b / GIB), { yaxis: "y3", line: { dash: "dot", width: 1.5 } }));
  if (c.end.length)
    traces.push(curve("memory", "memory", c.end, c.memory.map((b) => b / GIB), { yaxis: "y3", fill: "tozeroy" }));
  return traces;
}

function ticks(first, last) {
  const from = Math.max(0, Math.ceil(first)), to = Math.min(data.rows.length - 1, Math.floor(last));
  const step = Math.max(1, Math.ceil((to - from + 1) / 32));
  const tickvals = [];
  for (let row = from; row <= to; row += step) tickvals.push(row);
  return { tickvals, ticktext: tickvals.map((row) => String(data.rows[row])) };
}

function timelineLayout() {
  const rows = data.rows.length;
  const high = Math.min(620, Math.max(150, rows * 16)), curves = data.curves.end.length ? 150 : 0;
  const inner = high + 150 + curves + 70;
  const at = (from, to) => [1 - to / inner, 1 - from / inner];
  const axis = { zeroline: false, fixedrange: true, rangemode: "tozero" };
  return {
    height: inner + 110,
    xaxis: { title: { text: "seconds since the run began" }, range: [0, data.wall_s || 1], anchor: curves ? "y3" : "y2", zeroline: false },
    yaxis: { title: { text: "CPU" }, range: [rows - 0.4, -0.6], domain: at(0, high), zeroline: false, showgrid: false, ...ticks(0, rows - 1) },
    yaxis2: { ...axis, title: { text: "CPUs" }, domain: at(high + 35, high + 185) },
    yaxis3: { ...axis, title: { text: "memory, GiB" }, domain: at(high + 220, inner), visible: curves > 0 },
    shapes: [
      ...data.borders.map((row) => ({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: row - 0.5, y1: row - 0.5, line: { width: 1, dash: "dot" } })),
      ...data.usable.map(([at, pus], step) => ({ type: "line", xref: "x", x0: at, x1: (data.usable[step + 1] || [data.wall_s])[0], yref: "y2", y0: pus, y1: pus, line: { width: 1, dash: "dash" } })),
    ],
    annotations: [{ xref: "paper", x: 1, yref: "y2", y: data.usable[data.usable.length - 1][1], text: "usable", showarrow: false, xanchor: "right", yanchor: "top", font: { size: 11 } }],
    legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal", itemclick: false, itemdoubleclick: false },
    margin: { l: 60, r: 34, t: 60, b: 44 }, modebar: { orientation: "v" },
    hovermode: "x", dragmode: "zoom",
  };
}

// Lines between boxes, while these are wide enough to have any colour beside them.
function outline() {
  const { xaxis, yaxis } = timeline._fullLayout, [first, last] = xaxis.range;
  const high = yaxis._length / Math.abs(yaxis.range[1] - yaxis.range[0]); // of a row, in pixels
  const shown = data.calculations.filter((one) => one.start < last && one.start + one.wall > first);
  const boxes = shown.reduce((sum, one) => sum + one.rows.reduce((count, [low, high]) => count + high - low + 1, 0), 0);
  timeline.style.setProperty("--gap", high < 6 || boxes > 80 * data.rows.length ? "0px" : "0.5px");
}

// ---- planned against real ----

function plannedTraces() {
  const all = data.planned.flatMap((group) => group.dots.flatMap((dot) => [dot.planned, dot.real]));
  const ends = [Math.min(...all), Math.max(...all)];
  const line = { type: "scatter", mode: "lines", name: "as planned", x: ends, y: ends, meta: "leased", hoverinfo: "skip", line: { dash: "dash", width: 1 } };
  const names = ["eff4", "eff0", "eff2", "memory", "failed", "busy"];
  return [line, ...data.planned.map((group, at) => ({
    type: "scatter", mode: "markers", name: asText(group.group || "calculations"), meta: names[at % names.length],
    x: group.dots.map((dot) => dot.planned), y: group.dots.map((dot) => dot.real),
    text: group.dots.map((dot) => asText(dot.label) + (dot.count > 1 ? ` and ${dot.count - 1} more` : "")),
    hovertemplate: "%{text}<br>planned %{x:.3~g} s, took %{y:.3~g} s<extra></extra>", marker: { size: 6, opacity: 0.75 },
  }))];
}

function plannedLayout() {
  const all = data.planned.flatMap((group) => group.dots.flatMap((dot) => [dot.planned, dot.real]));
  const type = Math.max(...all) > 20 * Math.min(...all) ? "log" : "linear";
  const axis = (text) => ({ type, title: { text }, zeroline: false, ...(type === "log" ? { dtick: "D2", tickformat: ".2~g" } : { rangemode: "tozero" }) });
  return {
    height: 400, xaxis: axis("planned, s"), yaxis: axis("real, s"), hovermode: "closest",
    legend: { title: { text: "group " }, orientation: "h", y: 1, yanchor: "bottom", x: 0 }, margin: { l: 60, r: 34, t: 40, b: 44 },
    modebar: { orientation: "v" },
  };
}

// ---- colours ----

function coloured(traces, layout) {
  for (const trace of traces) {
    const shade = color(trace.meta);
    if (trace.line) trace.line.color = shade;
    if (trace.fill === "toself") trace.fillcolor = shade;
    if (trace.fill === "tozeroy") trace.fillcolor = shade + "40";
    if (trace.marker) trace.marker.color = shade;
  }
  layout.paper_bgcolor = layout.plot_bgcolor = color("page");
  layout.font = { color: color("ink"), family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 };
  layout.hoverlabel = { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } };
  for (const name of ["xaxis", "yaxis", "yaxis2", "yaxis3"]) if (layout[name]) layout[name].gridcolor = layout[name].linecolor = color("line");
  for (const shape of layout.shapes || []) shape.line.color = color("faint");
  return [traces, layout];
}

const BUTTONS = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]]; // none that sends anything

function draw(place, traces, layout) {
  place.style.height = `${layout.height}px`; // else it is lost when the plot is drawn again
  return Plotly.react(place, ...coloured(traces, layout), { responsive: true, displaylogo: false, modeBarButtons: BUTTONS });
}

const plots = []; // none before plotly's script is there
const drawAll = () => Promise.all(plots.map((plot) => draw(...plot)));

// Compressed it is two fifths as long, and it is inflated in less time than it takes to start.
async function loadPlotly() {
  const letters = atob(document.getElementById("plotly").textContent), bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(inflated).text();
  document.head.append(script);
}

async function drawFirst() {
  if (!window.DecompressionStream) {
    timeline.textContent = "This browser is too old to draw plots: Firefox 113, Safari 16.4, Chrome 80 and later ones do.";
    return;
  }
  const wanted = [[timeline, [...timelineTraces(), ...curveTraces()], timelineLayout()]];
  if (planned && data.planned.length) wanted.push([planned, plannedTraces(), plannedLayout()]);
  for (const [place, , layout] of wanted) place.style.height = `${layout.height}px`; // so that nothing moves when they come
  await loadPlotly();
  plots.push(...wanted);
  await drawAll();
  listen();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

// ---- which box is under the mouse ----

const byRow = data.rows.map(() => []);
data.calculations.forEach((one, at) => one.rows.forEach(([first, last]) => { for (let row = first; row <= last; row++) byRow[row].push(at); }));
byRow.forEach((those) => those.sort((a, b) => data.calculations[a].start - data.calculations[b].start));

function under(event) {
  const { xaxis, yaxis } = timeline._fullLayout;
  const box = timeline.getBoundingClientRect();
  const px = event.clientX - box.left - xaxis._offset, py = event.clientY - box.top - yaxis._offset;
  if (px < 0 || px > xaxis._length || py < 0 || py > yaxis._length) return null;
  const at = xaxis.p2d(px), those = byRow[Math.round(yaxis.p2d(py))] || [];
  let low = 0, high = those.length; // the last that has begun
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.calculations[those[middle]].start <= at) low = middle + 1; else high = middle;
  }
  const found = low ? those[low - 1] : null;
  return found != null && at <= data.calculations[found].start + data.calculations[found].wall ? found : null;
}

function tell(event) {
  const tip = document.getElementById("tip"), at = under(event);
  tip.hidden = at == null;
  if (at == null) return;
  const one = data.calculations[at];
  tip.textContent = [
    one.label + (one.attempt > 1 ? `, attempt ${one.attempt}` : "") + (one.status === "finished" ? "" : `: ${one.status}`),
    `${number(one.start)} s to ${number(one.start + one.wall)} s, ${number(one.wall)} s` + (one.planned ? `, planned ${number(one.planned)} s` : ""),
    `${one.threads} threads` + (one.worked == null ? "" : `, ${one.worked} worked`) + ` on CPUs ${one.cpus}`,
    one.efficiency == null ? "" : `efficiency ${percent(one.efficiency)}` + (one.queue == null ? "" : `, waited for a CPU ${percent(one.queue)}`),
    one.peak ? `memory ${gib(one.peak)} GiB` + (one.granted ? ` of ${gib(one.granted)} GiB` : "") : "",
    one.error.slice(0, 300),
  ].filter(Boolean).join("\n");
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// What is done to a drawn timeline.
function listen() {
  timeline.addEventListener("mousemove", tell);
  timeline.addEventListener("mouseleave", () => (document.getElementById("tip").hidden = true));
  let pressed = null; // a drag zooms, and is no click
  timeline.addEventListener("mousedown", (event) => (pressed = [event.clientX, event.clientY]), true);
  addEventListener("mouseup", (event) => {
    if (pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4) find(under(event));
    pressed = null;
  }, true);
  outline();
  timeline.on("plotly_relayout", (change) => {
    outline();
    if (!Object.keys(change).some((key) => key.startsWith("yaxis.range") || key === "yaxis.autorange")) return;
    const [last, first] = timeline._fullLayout.yaxis.range, shown = ticks(first, last);
    Plotly.relayout(timeline, { "yaxis.tickvals": shown.tickvals, "yaxis.ticktext": shown.ticktext });
  });
}

// ---- the table ----

const longest = Math.max(1, ...data.calculations.map((one) => one.wall));
const seconds = (value) => (value == null ? "" : value.toFixed(Math.max(0, Math.min(3, 3 - Math.floor(Math.log10(longest))))));
const COLUMNS = [
  ["label", "calculation"], ["group", "group"], ["attempt", "attempt", number], ["status", "status"],
  ["start", "start, s", seconds], ["wall", "wall, s", seconds], ["planned", "planned, s", seconds],
  ["ratio", "real / planned", (v) => (v == null ? "" : v.toFixed(2))], ["threads", "threads", number], ["worked", "worked", number], ["cpus", "CPUs"],
  ["seen", "CPUs seen"], ["efficiency", "efficiency", percent], ["queue", "waited for CPU", percent], ["waited", "for lease, s", seconds],
  ["peak", "memory, GiB", gib], ["granted", "granted, GiB", gib], ["pid", "process", (v) => String(v)], ["error", "error"],
].filter(([key]) => key === "attempt" ? data.calculations.some((one) => one.attempt > 1) : key !== "seen" ? data.calculations.some((one) => one[key] != null && one[key] !== "")
  : data.calculations.some((one) => one.seen && one.seen !== one.cpus));
const natural = new Intl.Collator("en", { numeric: true });
const table = { order: data.calculations.map((_, at) => at), key: "start", sign: 1, page: 0, filter: "", found: null };

function compare(a, b) {
  const x = data.calculations[a][table.key], y = data.calculations[b][table.key];
  if (x == null || y == null) return (x == null) - (y == null) || a - b; // what is not known comes last either way
  return table.sign * (typeof x === "string" ? natural.compare(x, y) : x - y) || a - b;
}

function order() {
  const words = table.filter.toLowerCase();
  const said = (one) => `${one.label} ${one.group} ${one.status} ${one.cpus} ${one.pid} ${one.error}`.toLowerCase();
  table.order = data.calculations.map((_, at) => at).filter((at) => !words || said(data.calculations[at]).includes(words)).sort(compare);
}

function cell(kind, text, numeric) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (numeric) made.className = "number";
  return made;
}

function heads() {
  const row = document.createElement("tr");
  for (const [key, title, format] of COLUMNS) {
    const head = cell("th", "", Boolean(format)), button = cell("button", title, false);
    button.type = "button";
    button.addEventListener("click", () => {
      table.sign = table.key === key ? -table.sign : 1;
      table.key = key;
      table.page = 0;
      order();
      rows();
    });
    head.dataset.key = key;
    head.append(button);
    row.append(head);
  }
  document.querySelector("#calculations thead").append(row);
}

function rows() {
  for (const head of document.querySelectorAll("#calculations th"))
    head.dataset.key === table.key ? head.setAttribute("aria-sort", table.sign > 0 ? "ascending" : "descending") : head.removeAttribute("aria-sort");
  const first = table.page * PAGE, shown = table.order.slice(first, first + PAGE), total = table.order.length;
  document.querySelector("#calculations tbody").replaceChildren(...shown.map((at) => {
    const one = data.calculations[at], row = document.createElement("tr");
    row.className = (one.status === "failed" ? "failed" : "") + (at === table.found ? " found" : "");
    for (const [key, , format] of COLUMNS) {
      const made = cell("td", format ? format(one[key]) : one[key] ?? "", Boolean(format));
      if (key === "error") made.className = "error";
      row.append(made);
    }
    return row;
  }));
  document.getElementById("shown").textContent = total ? `${number(first + 1, 9)} to ${number(first + shown.length, 9)} of ${number(total, 9)}` : "none";
  document.getElementById("before").disabled = !table.page;
  document.getElementById("after").disabled = first + PAGE >= total;
}

function turn(pages) {
  table.page += pages;
  rows();
}

function find(at) {
  if (at == null) return;
  table.filter = document.getElementById("filter").value = "";
  table.found = at;
  order();
  table.page = Math.floor(table.order.indexOf(at) / PAGE);
  rows();
  document.querySelector("#calculations tr.found").scrollIntoView({ block: "center" });
}

// ---- light, dark, paper ----

function theme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "◐ light" : "◐ dark";
  return drawAll();
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
let onScreen = systemDark.matches ? "dark" : "light", printing = false;
systemDark.addEventListener("change", (event) => {
  if (!printing) theme((onScreen = event.matches ? "dark" : "light")); // paper is light, whatever the system is
});
document.getElementById("theme").addEventListener("click", () => theme((onScreen = onScreen === "dark" ? "light" : "dark")));

function resize(place, width, height) {
  place.style.height = `${height}px`;
  Plotly.relayout(place, { width, height, autosize: width === null });
}

addEventListener("beforeprint", () => {
  printing = true;
  theme("light");
  for (const [place] of plots) resize(place, 1000, Math.min((place.dataset.height = place.clientHeight), 570)); // of A4 across
});
addEventListener("afterprint", () => {
  for (const [place] of plots) resize(place, null, Number(place.dataset.height));
  printing = false;
  theme(onScreen);
});

document.getElementById("filter").addEventListener("input", (event) => {
  table.filter = event.target.value;
  table.page = 0;
  order();
  rows();
});
document.getElementById("before").addEventListener("click", () => turn(-1));
document.getElementById("after").addEventListener("click", () => turn(1));
heads();
order();
rows();
theme(onScreen);
drawFirst();
