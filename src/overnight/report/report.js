// Redraws the charts at the width of the screen and lets them be read: values under the pointer, other axes, zoom.
// The curves come as JSON from the page itself; nothing is fetched.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = { axis: "step", logX: false, cutStart: true, smoothing: 2, hidden: new Set(), zoom: null, at: null };
  const CUT = 0.04; // as in svg.py
  const AXES = { step: "Steps", tokens: "Tokens", seconds: "Time" };
  const charts = [];

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

  // ---- axes ----
  function width(lines) { // the range of the level axis
    if (view.zoom) return view.zoom;
    let low = Infinity, high = -Infinity;
    for (const line of lines) for (const x of line.xs) {
      if (x === null || (view.logX && x <= 0)) continue;
      low = Math.min(low, x); high = Math.max(high, x);
    }
    if (low > high) return [view.logX ? 1 : 0, 10];
    if (!view.logX && low < high * 0.05) low = 0;
    return high > low ? [low, high] : view.logX ? [low / 2, low * 2] : [0, low || 1];
  }
  function heights(chart, lines, left, right) {
    const all = [], later = [], cut = left + CUT * (right - left);
    for (const line of lines) line.y.forEach((y, i) => {
      if (y === null || line.xs[i] < left || line.xs[i] > right || (chart.logY && y <= 0)) return;
      all.push(y);
      if (line.xs[i] >= cut) later.push(y);
    });
    let [low, high] = all.length ? span(all) : [1, 10];
    if (chart.cutStart && view.cutStart && !view.logX && !view.zoom && later.length >= 10) {
      const [bottom, top] = span(later);
      if (top > bottom && high - low > 1.4 * (top - bottom)) high = top;
    }
    for (const [, level] of chart.levels) { low = Math.min(low, level); high = Math.max(high, level); }
    const factor = high > low ? (high / low) ** 0.05 : 2;
    if (chart.logY) return [low / factor, high * factor];
    if (chart.fromZero && low > 0 && !view.zoom) return [0, high * 1.06];
    const gap = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    return [low - gap, high + gap];
  }

  // ---- drawing ----
  function path(xs, ys, x, y, from, to) {
    let d = "", pen = "M";
    const last = Math.min(xs.length, lowerBound(xs, to) + 1);
    for (let i = Math.max(0, lowerBound(xs, from) - 1); i < last; i++) {
      if (ys[i] === null || xs[i] === null || (view.logX && xs[i] <= 0)) { pen = "M"; continue; }
      d += pen + x(xs[i]).toFixed(1) + " " + y(ys[i]).toFixed(1) + (pen === "M" ? "h0" : "");
      pen = "L";
    }
    return d;
  }
  function draw(chart) {
    const w = chart.plot.clientWidth, h = chart.large ? (w < 560 ? 260 : 340) : 220;
    if (!w) return;
    const lines = chart.lines.filter((line) => !view.hidden.has(line.key)).map(prepare);
    const L = 52, R = 14, T = 10, B = 26, [left, right] = width(lines), [low, high] = heights(chart, lines, left, right);
    const x = scale(left, right, L, w - R, view.logX), y = scale(low, high, h - B, T, chart.logY);
    let html = `<clipPath id="${chart.id}-live"><rect x="${L}" y="${T - 4}" width="${w - L - R + 9}" height="${h - B - T + 4}"/></clipPath>`;
    for (const tick of chart.logY ? logTicks(low, high, 8) : ticks(low, high, (h - 36) / 42))
      html += `<path class="grid" d="M${L} ${y(tick).toFixed(1)}H${w - R}"/>` +
        `<text class="tick" x="${L - 7}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${plain(tick)}</text>`;
    html += levelTicks(left, right, x, w, h) + `<g clip-path="url(#${chart.id}-live)">`;
    for (const step of data.runs.length === 1 ? data.runs[0].resumed : [])
      html += `<path class="resumed" d="M${x(along(0, [step])[0]).toFixed(1)} ${T}V${h - B}"/>`;
    for (const [name, level] of chart.levels)
      html += `<path class="level" d="M${L} ${y(level).toFixed(1)}H${w - R}"/>` +
        `<text class="level" x="${w - R}" y="${(y(level) - 4).toFixed(1)}" text-anchor="end">${escapeText(name)}</text>`;
    for (const line of lines) html += curve(line, x, y, left, right, T);
    chart.svg.innerHTML = html + "</g><g></g>";
    chart.svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    chart.now = { x, y, left, right, w, h, T, B, L, R, lines };
    point(chart, chart === charts.over);
  }
  function levelTicks(left, right, x, w, h) {
    const [unit, name] = view.axis === "seconds" ? timeUnit(right - (view.zoom ? left : 0)) : [1, ""], room = w / 90;
    const found = view.logX ? logTicks(left / unit, right / unit, room) : ticks(left / unit, right / unit, room);
    return found.map((tick) => `<text class="tick" x="${x(tick * unit).toFixed(1)}" y="${h - 8}" text-anchor="middle">${short(tick)}${name}</text>`).join("");
  }
  function curve(line, x, y, left, right, top) {
    const color = "c" + line.color, raw = path(line.xs, line.y, x, y, left, right);
    let html = `<path class="line ${color}${line.smoothYs ? " raw" : ""}" d="${raw}"/>`;
    if (line.smoothYs) html += `<path class="line ${color}" d="${path(line.smoothXs, line.smoothYs, x, y, left, right)}"/>`;
    let gaps = "", dots = "";
    line.y.forEach((value, i) => {
      const at = line.xs[i];
      if (at === null || at < left || at > right) return;
      if (value === null) gaps += `M${x(at).toFixed(1)} ${top - 4}v7`;
      else if (line.dots) dots += `<circle class="dot ${color}" cx="${x(at).toFixed(1)}" cy="${y(value).toFixed(1)}" r="2.5"/>`;
    });
    if (gaps) html += `<path class="gap" d="${gaps}"/>`; // here stood something that is not a number
    if (line.best) {
      const [at] = along(line.run, [line.best[0]]);
      html += `<circle class="best ${color}" cx="${x(at).toFixed(1)}" cy="${y(line.best[1]).toFixed(1)}" r="5.5"/>`;
    }
    return html + dots;
  }
  const drawAll = () => charts.forEach(draw);

  // ---- reading values ----
  function point(chart, tip) { // marks where the pointer is, in every chart; writes the values beside it in one
    const { now } = chart, layer = chart.svg.lastElementChild;
    chart.tip.hidden = !(tip && view.at !== null);
    if (view.at === null || !now || view.at < now.left || view.at > now.right) { layer.innerHTML = ""; chart.tip.hidden = true; return; }
    const found = now.lines.filter((line) => line.xs.length).map((line) => ({ line, i: nearest(line.xs, view.at) }));
    const spots = found.filter(({ line, i }) => line.y[i] !== null && inside(now, line, i)).map(({ line, i }) =>
      `<circle class="spot c${line.color}" cx="${now.x(line.xs[i]).toFixed(1)}" cy="${now.y(line.y[i]).toFixed(1)}" r="3.5"/>`);
    layer.innerHTML = `<path class="cursor" d="M${now.x(view.at).toFixed(1)} ${now.T}V${now.h - now.B}"/>` + spots.join("");
    if (!chart.tip.hidden && found.length) write(chart, found);
  }
  const inside = (now, line, i) => { const y = now.y(line.y[i]); return y >= now.T - 4 && y <= now.h - now.B + 4; };
  function write(chart, found) {
    const closest = found.reduce((a, b) => (Math.abs(b.line.xs[b.i] - view.at) < Math.abs(a.line.xs[a.i] - view.at) ? b : a));
    const step = closest.line.x[closest.i], { clock } = data.runs[closest.line.run];
    const tokens = between(clock.step, clock.tokens, step), seconds = between(clock.step, clock.seconds, step);
    const head = document.createElement("p"), table = document.createElement("table");
    head.className = "about";
    head.textContent = ["step " + step.toLocaleString("en-US"), tokens === null ? "" : short(tokens) + " tokens",
      seconds === null ? "" : duration(seconds)].filter(Boolean).join(" · ");
    for (const { line, i } of found) { // names come from folders: as text, never as HTML
      const row = table.insertRow(), swatch = document.createElement("span"), value = line.y[i];
      swatch.className = "swatch c" + line.color;
      row.insertCell().append(swatch, line.label);
      const cell = row.insertCell();
      cell.className = "n";
      cell.textContent = value === null ? "not a number" : trim(value, 5);
      row.insertCell().textContent = line.x[i] === step ? "" : "step " + line.x[i].toLocaleString("en-US");
    }
    chart.tip.replaceChildren(head, table);
    const at = chart.now.x(view.at), room = chart.tip.offsetWidth;
    const beside = at + 14 + room < chart.now.w ? at + 14 : at - 14 - room;
    chart.tip.style.left = Math.max(0, Math.min(beside, chart.now.w - room)) + "px";
  }
  const pointAll = () => charts.forEach((chart) => point(chart, chart === charts.over));

  function listen(chart) {
    const { plot } = chart, where = (event) => event.clientX - plot.getBoundingClientRect().left;
    let start = null;
    const move = (event) => {
      if (!chart.now) return;
      const { x, L, R, w } = chart.now, at = Math.min(Math.max(where(event), L), w - R);
      view.at = x.back(at);
      charts.over = chart;
      pointAll();
      if (start !== null) chart.svg.lastElementChild.innerHTML +=
        `<rect class="drag" x="${Math.min(start, at)}" y="${chart.now.T}" width="${Math.abs(at - start)}" height="${chart.now.h - chart.now.B - chart.now.T}"/>`;
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
      charts.over = chart;
      pointAll();
    });
  }
  function zoom(range) {
    if (range && range[1] - range[0] < Math.abs(range[1]) * 1e-6) return; // closer than numbers can tell apart
    view.zoom = range;
    document.getElementById("reset").hidden = !view.zoom;
    drawAll();
  }

  // ---- what can be switched ----
  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }
  function tools() {
    const bar = document.getElementById("tools");
    if (!bar) return;
    const choice = element("span", { className: "choice" });
    for (const [axis, title] of Object.entries(AXES)) {
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
    const reset = element("button", { type: "button", id: "reset", className: "reset", textContent: "Show all", hidden: true, onclick: () => zoom(null) });
    bar.append(choice.children.length > 1 ? choice : "", check("Log axis", "logX"), check("Cut off the start", "cutStart"), element("label", {}, "Smoothing", slider), reset);
    bar.hidden = false;
  }
  function keys() {
    document.querySelectorAll(".key").forEach((button) => {
      button.onclick = () => {
        const { key } = button.dataset, off = !view.hidden.has(key);
        if (off) view.hidden.add(key); else view.hidden.delete(key);
        button.setAttribute("aria-pressed", !off);
        drawAll();
      };
    });
  }
  function samples() {
    const bar = document.getElementById("slider"), boxes = [...document.querySelectorAll(".box")];
    const found = boxes.map((box) => [...box.querySelectorAll(".sample")]);
    const steps = [...new Set(found.flat().map((one) => Number(one.dataset.step)))].sort((a, b) => a - b);
    if (!bar || steps.length < 2) return;
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

  for (const chart of data.charts) {
    const figure = document.querySelector(`[data-chart="${chart.id}"]`);
    chart.plot = figure.querySelector(".plot");
    chart.plot.tabIndex = 0;
    chart.svg = chart.plot.firstElementChild;
    chart.svg.setAttribute("class", "live");
    chart.tip = element("div", { className: "tip", hidden: true });
    const log = element("button", { type: "button", className: "log-y", textContent: "log", title: "Logarithmic height" });
    log.setAttribute("aria-pressed", chart.logY);
    log.onclick = () => { chart.logY = !chart.logY; log.setAttribute("aria-pressed", chart.logY); draw(chart); };
    figure.querySelector("figcaption").append(log);
    chart.plot.append(chart.tip);
    charts.push(chart);
    listen(chart);
  }
  tools();
  keys();
  samples();
  new ResizeObserver(() => requestAnimationFrame(drawAll)).observe(document.querySelector("main"));
})();
