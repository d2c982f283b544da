// Redraws the charts at the width of the screen and lets them be read: values under the pointer, other axes, zoom.
// The curves come as JSON from the page itself; nothing is fetched.
const AXES = { step: ["Steps", "steps"], tokens: ["Tokens", "tokens"], seconds: ["Time", "time"] };

// Draws `data` into the figures of the page. Gives {view, update, stop}: `update` takes newer data for the same charts, and
// returns false where they are others; `view`, what the reader chose, can be handed to the next startReport.
function startReport(data, chosen) {
  const view = chosen || { axis: data.axis, logX: false, cutStart: true, smoothing: 2, hidden: new Set(), logY: {}, zoom: null };
  view.at = null; // where the pointer is
  const charts = [];
  let over = null; // the chart that it is over

  const along = (run, steps) => {
    if (view.axis === "step") return steps;
    const clock = data.runs[run].clock;
    return steps.map((step) => between(clock.step, clock[view.axis], step));
  };

  // What is drawn of a line now: its points and its smoothed points.
  function prepare(line) {
    const key = view.axis + view.smoothing;
    if (line.prepared !== key) {
      line.xs = along(line.run, line.x);
      const smoothed = line.noisy && view.smoothing > 0;
      line.smoothXs = line.meanX && smoothed ? along(line.run, line.meanX) : line.xs;
      line.smoothYs = smoothed ? smooth(line.meanY || line.y, view.smoothing / 100) : null;
      line.prepared = key;
    }
    return line;
  }

  // ---- drawing ----
  function draw(chart) {
    const w = chart.plot.clientWidth, h = chart.large ? (w < 560 ? 260 : 340) : 220;
    if (!w) return;
    const lines = chart.lines.filter((line) => !view.hidden.has(line.key)).map(prepare);
    for (const band of chart.bands) band.xs = along(band.run, band.x);
    const [left, right] = widthOf(lines, view), [low, high] = heightsOf(chart, lines, chart.bands, view, left, right);
    const x = scale(left, right, MARGIN.left, w - MARGIN.right, view.logX);
    const frame = { x, y: scale(low, high, h - MARGIN.bottom, MARGIN.top, chart.logY), left, right, w, h };
    const { top, bottom } = MARGIN, clip = chart.id + "-live";
    let html = `<clipPath id="${clip}"><rect x="${MARGIN.left}" y="${top - 4}" width="${w - MARGIN.left - MARGIN.right + 9}" height="${h - bottom - top + 4}"/></clipPath>`;
    html += heightTicks(chart, frame, low, high) + levelTicks(view, frame, AXES[view.axis][1]) + `<g clip-path="url(#${clip})">`;
    for (const band of chart.bands) html += bandOf(band, frame);
    for (const step of data.runs.length === 1 ? data.runs[0].resumed : [])
      html += `<path class="resumed" d="M${x(along(0, [step])[0]).toFixed(1)} ${top}V${h - bottom}"/>`;
    html += levelsOf(chart.levels, frame);
    for (const line of lines) html += curveOf(line, frame, view.logX) + best(line, frame);
    chart.svg.innerHTML = html + "</g><g></g>";
    chart.svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    chart.now = { ...frame, lines };
    point(chart);
  }
  function best(line, { x, y }) {
    if (!line.best) return "";
    const [at] = along(line.run, [line.best[0]]);
    return `<circle class="best c${line.color}" cx="${x(at).toFixed(1)}" cy="${y(line.best[1]).toFixed(1)}" r="5.5"/>`;
  }
  const drawAll = () => charts.forEach(draw);

  // ---- reading values ----
  function point(chart) { // marks where the pointer is, in every chart; writes the values beside it in the one it is over
    const { now } = chart, layer = chart.svg.lastElementChild, there = now && view.at !== null && view.at >= now.left && view.at <= now.right;
    chart.tip.hidden = !(there && chart === over);
    if (!there) { layer.innerHTML = ""; return; }
    const found = now.lines.filter((line) => line.xs.length).map((line) => ({ line, i: nearest(line.xs, view.at) }));
    const spots = found.filter(({ line, i }) => line.y[i] !== null && inside(now, line, i)).map(({ line, i }) =>
      `<circle class="spot c${line.color}" cx="${now.x(line.xs[i]).toFixed(1)}" cy="${now.y(line.y[i]).toFixed(1)}" r="3.5"/>`);
    layer.innerHTML = `<path class="cursor" d="M${now.x(view.at).toFixed(1)} ${MARGIN.top}V${now.h - MARGIN.bottom}"/>` + spots.join("");
    if (!chart.tip.hidden && found.length) write(chart, found);
  }
  const inside = (now, line, i) => { const y = now.y(line.y[i]); return y >= MARGIN.top - 4 && y <= now.h - MARGIN.bottom + 4; };
  function write(chart, found) {
    const closest = found.reduce((a, b) => (Math.abs(b.line.xs[b.i] - view.at) < Math.abs(a.line.xs[a.i] - view.at) ? b : a));
    const step = closest.line.x[closest.i], { clock } = data.runs[closest.line.run];
    const [tokens, seconds, epochs] = ["tokens", "seconds", "epochs"].map((name) => between(clock.step, clock[name], step));
    const head = document.createElement("p"), table = document.createElement("table");
    head.className = "about";
    head.textContent = ["step " + step.toLocaleString("en-US"), tokens === null ? "" : short(tokens) + " tokens",
      seconds ? duration(seconds) : "", epochs === null ? "" : "epoch " + trim(epochs, 3)].filter(Boolean).join(" · ");
    for (const { line, i } of found) {
      const value = line.y[i], error = line.error && line.error[i] !== null ? " ± " + trim(line.error[i], 2) : "";
      row(table, line.color, line.label, value === null ? "not a number" : trim(value, 5) + error,
        line.x[i] === step ? "" : "step " + line.x[i].toLocaleString("en-US"));
    }
    for (const band of chart.bands) {
      const edges = [band.low, band.high].map((edge) => between(band.x, edge, step));
      if (edges.every((edge) => edge !== null)) row(table, "band", band.label, edges.map((edge) => trim(edge, 4)).join(" to "), "");
    }
    chart.tip.replaceChildren(head, table);
    const at = chart.now.x(view.at), room = chart.tip.offsetWidth;
    const beside = at + 14 + room < chart.now.w ? at + 14 : at - 14 - room;
    chart.tip.style.left = Math.max(0, Math.min(beside, chart.now.w - room)) + "px";
  }
  function row(table, color, label, value, where) { // names come from folders: as text, never as HTML
    const made = table.insertRow(), swatch = element("span", { className: "swatch c" + color });
    made.insertCell().append(swatch, label);
    const cell = made.insertCell();
    cell.className = "n";
    cell.textContent = value;
    made.insertCell().textContent = where;
  }
  const pointAll = () => charts.forEach(point);

  function listen(chart) {
    const { plot } = chart, where = (event) => event.clientX - plot.getBoundingClientRect().left;
    let start = null;
    const move = (event) => {
      if (!chart.now) return;
      const { x, w, h } = chart.now, at = Math.min(Math.max(where(event), MARGIN.left), w - MARGIN.right);
      view.at = x.back(at);
      over = chart;
      pointAll();
      if (start !== null) chart.svg.lastElementChild.innerHTML +=
        `<rect class="drag" x="${Math.min(start, at)}" y="${MARGIN.top}" width="${Math.abs(at - start)}" height="${h - MARGIN.bottom - MARGIN.top}"/>`;
    };
    plot.addEventListener("pointermove", move);
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) { start = where(event); plot.setPointerCapture(event.pointerId); }
      move(event);
    });
    plot.addEventListener("pointerup", (event) => {
      const from = start, to = where(event);
      start = null;
      if (from !== null && Math.abs(to - from) > 8) zoom([chart.now.x.back(Math.min(from, to)), chart.now.x.back(Math.max(from, to))]);
    });
    plot.addEventListener("pointerleave", () => { view.at = null; pointAll(); });
    plot.addEventListener("dblclick", () => zoom(null));
    plot.addEventListener("keydown", (event) => {
      const line = chart.now?.lines[0], by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !line) return;
      event.preventDefault();
      const i = view.at === null ? 0 : nearest(line.xs, view.at) + by * (event.shiftKey ? 10 : 1);
      view.at = line.xs[Math.min(Math.max(i, 0), line.xs.length - 1)];
      over = chart;
      pointAll();
    });
  }
  function zoom(range) {
    if (range && range[1] - range[0] < Math.abs(range[1]) * 1e-6) return; // closer than numbers can tell apart
    view.zoom = range;
    const reset = document.getElementById("reset");
    if (reset) reset.hidden = !view.zoom;
    drawAll();
  }

  // ---- what can be switched ----
  function tools() {
    const bar = document.getElementById("tools");
    if (!bar) return;
    const choice = element("span", { className: "choice" });
    for (const [axis, [title]] of Object.entries(AXES)) {
      if (!data.runs.some((run) => run.clock[axis].some((value) => value > 0))) continue;
      const button = element("button", { type: "button", textContent: title });
      button.setAttribute("aria-pressed", axis === view.axis);
      button.onclick = () => {
        view.axis = axis;
        choice.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", other === button));
        zoom(null);
      };
      choice.append(button);
    }
    const check = (title, name) => {
      const box = element("input", { type: "checkbox", checked: view[name] });
      box.onchange = () => { view[name] = box.checked; zoom(null); };
      return element("label", {}, box, title);
    };
    const slider = element("input", { type: "range", min: 0, max: 8, step: 0.5, value: view.smoothing });
    slider.oninput = () => { view.smoothing = Number(slider.value); drawAll(); };
    const reset = element("button", { type: "button", id: "reset", className: "reset", textContent: "Show all", hidden: !view.zoom, onclick: () => zoom(null) });
    bar.replaceChildren(choice.children.length > 1 ? choice : "", check("Log axis", "logX"), check("Cut off the start", "cutStart"), element("label", {}, "Smoothing", slider), reset);
    bar.hidden = false;
  }
  function keys() {
    document.querySelectorAll(".key").forEach((button) => {
      const { key } = button.dataset;
      button.setAttribute("aria-pressed", !view.hidden.has(key));
      button.onclick = () => {
        const off = !view.hidden.has(key);
        if (off) view.hidden.add(key); else view.hidden.delete(key);
        button.setAttribute("aria-pressed", !off);
        drawAll();
      };
    });
  }
  function attach(chart) {
    const figure = document.querySelector(`[data-chart="${chart.id}"]`);
    chart.plot = figure.querySelector(".plot");
    chart.plot.tabIndex = 0;
    chart.svg = chart.plot.firstElementChild;
    chart.svg.setAttribute("class", "live");
    chart.tip = element("div", { className: "tip", hidden: true });
    chart.logY = view.logY[chart.id] ?? chart.logY;
    const log = element("button", { type: "button", className: "log-y", textContent: "log", title: "Logarithmic height" });
    log.setAttribute("aria-pressed", chart.logY);
    log.onclick = () => { view.logY[chart.id] = chart.logY = !chart.logY; log.setAttribute("aria-pressed", chart.logY); draw(chart); };
    figure.querySelector("figcaption").append(log);
    chart.plot.append(chart.tip);
    charts.push(chart);
    listen(chart);
  }
  const shape = ({ runs, charts }) => JSON.stringify([runs.map((run) => run.name), charts.map((chart) => [chart.id, chart.lines.map((line) => line.key)])]);
  const known = shape(data);
  const watching = new ResizeObserver(() => requestAnimationFrame(drawAll));
  const stop = () => watching.disconnect();
  function update(newer) {
    if (shape(newer) !== known) { stop(); return false; }
    data = newer;
    charts.forEach((chart, i) => Object.assign(chart, newer.charts[i], { logY: view.logY[chart.id] ?? newer.charts[i].logY }));
    drawAll();
    return true;
  }

  data.charts.forEach((chart) => attach({ ...chart }));
  tools();
  keys();
  sampleSlider();
  watching.observe(document.querySelector("main"));
  return { view, update, stop };
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Puts the samples of the page under a slider.
function sampleSlider() {
  const bar = document.getElementById("slider"), boxes = [...document.querySelectorAll(".box")];
  const found = boxes.map((box) => [...box.querySelectorAll(".sample")]);
  const steps = [...new Set(found.flat().map((one) => Number(one.dataset.step)))].sort((a, b) => a - b);
  if (!bar || !bar.hidden || steps.length < 2) return;
  const slider = element("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1 });
  const label = element("output", {});
  slider.setAttribute("aria-label", "Step of the samples");
  slider.oninput = () => {
    const step = steps[slider.value];
    label.textContent = "step " + step.toLocaleString("en-US");
    for (const articles of found) { // of each run the newest sample that it had by then
      const chosen = articles.filter((one) => Number(one.dataset.step) <= step).pop();
      articles.forEach((one) => { one.hidden = one !== chosen; });
    }
  };
  bar.append(slider, label);
  bar.hidden = false;
  slider.oninput();
}
