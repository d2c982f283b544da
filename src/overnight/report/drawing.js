// What report.js draws a chart with: its ranges and its parts as SVG. Nothing here keeps anything.
const CUT = 0.04; // as in svg.py
const MARGIN = { left: 52, right: 14, top: 10, bottom: 26 };

// ---- ranges ----
function widthOf(lines, view) { // the range of the level axis
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
function heightsOf(chart, lines, bands, view, left, right) {
  const all = [], later = [], cut = left + CUT * (right - left);
  const see = (x, y) => {
    if (y === null || x === null || x < left || x > right || (chart.logY && y <= 0)) return;
    all.push(y);
    if (x >= cut) later.push(y);
  };
  for (const line of lines) line.y.forEach((y, i) => {
    const error = y === null || !line.error ? null : line.error[i];
    see(line.xs[i], y);
    if (error !== null) { see(line.xs[i], y - error); see(line.xs[i], y + error); }
  });
  for (const band of bands) band.xs.forEach((x, i) => { see(x, band.low[i]); see(x, band.high[i]); });
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
  return [low - gap, high + (chart.levels.length ? 2 * gap : gap)]; // a level's name stands above it
}

// ---- parts ----
// `frame` is {x, y, left, right, w, h}: the scales, the range of the level axis, the size of the picture.
function pathOf(xs, ys, frame, positive) {
  let d = "", pen = "M";
  const last = Math.min(xs.length, lowerBound(xs, frame.right) + 1);
  for (let i = Math.max(0, lowerBound(xs, frame.left) - 1); i < last; i++) {
    if (ys[i] === null || xs[i] === null || (positive && xs[i] <= 0)) { pen = "M"; continue; }
    d += pen + frame.x(xs[i]).toFixed(1) + " " + frame.y(ys[i]).toFixed(1) + (pen === "M" ? "h0" : "");
    pen = "L";
  }
  return d;
}
function curveOf(line, frame, positive) {
  const { x, y, left, right } = frame, color = "c" + line.color;
  let html = `<path class="line ${color}${line.smoothYs ? " raw" : ""}" d="${pathOf(line.xs, line.y, frame, positive)}"/>`;
  if (line.smoothYs) html += `<path class="line ${color}" d="${pathOf(line.smoothXs, line.smoothYs, frame, positive)}"/>`;
  let gaps = "", dots = "", bars = "";
  line.y.forEach((value, i) => {
    const at = line.xs[i], error = line.error ? line.error[i] : null;
    if (at === null || at < left || at > right) return;
    if (value === null) { gaps += `M${x(at).toFixed(1)} ${MARGIN.top - 4}v7`; return; }
    if (line.dots) dots += `<circle class="dot ${color}" cx="${x(at).toFixed(1)}" cy="${y(value).toFixed(1)}" r="2.5"/>`;
    if (error !== null) bars += `M${x(at).toFixed(1)} ${y(value - error).toFixed(1)}V${y(value + error).toFixed(1)}`;
  });
  if (gaps) html += `<path class="gap" d="${gaps}"/>`; // here stood something that is not a number
  if (bars) html += `<path class="whisker ${color}" d="${bars}"/>`;
  return html + dots;
}
function bandOf(band, frame) {
  const at = band.xs.map((x, i) => i).filter((i) => band.xs[i] !== null && band.low[i] !== null && band.high[i] !== null);
  const point = (edge) => (i) => frame.x(band.xs[i]).toFixed(1) + "," + frame.y(edge[i]).toFixed(1);
  const edge = [...at.map(point(band.high)), ...at.map(point(band.low)).reverse()];
  return edge.length ? `<polygon class="band" points="${edge.join(" ")}"><title>${escapeText(band.label)}</title></polygon>` : "";
}
function levelsOf(levels, frame) { // the name of each above its line, or higher where another's is
  const right = frame.w - MARGIN.right;
  let html = "", taken = Infinity;
  for (const [name, level] of [...levels].sort((a, b) => a[1] - b[1])) {
    const at = frame.y(level);
    taken = Math.min(at - 4, taken - 13);
    html += `<path class="level" d="M${MARGIN.left} ${at.toFixed(1)}H${right}"/>` +
      `<text class="level" x="${right}" y="${taken.toFixed(1)}" text-anchor="end">${escapeText(name)}</text>`;
  }
  return html;
}
function heightTicks(chart, frame, low, high) {
  const { y, w, h } = frame;
  return (chart.logY ? logTicks(low, high, 8) : ticks(low, high, (h - 36) / 42)).map((tick) =>
    `<path class="grid" d="M${MARGIN.left} ${y(tick).toFixed(1)}H${w - MARGIN.right}"/>` +
    `<text class="tick" x="${MARGIN.left - 7}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${plain(tick)}</text>`).join("");
}
function levelTicks(view, frame, name) { // what they count stands in the place of those too far to the right
  const { x, left, right, w, h } = frame, room = w / 90, end = w - MARGIN.right - 8 * name.length - 18;
  const [unit, letter] = view.axis === "seconds" ? timeUnit(right - (view.zoom ? left : 0)) : [1, ""];
  const found = view.logX ? logTicks(left / unit, right / unit, room) : ticks(left / unit, right / unit, room);
  return found.filter((tick) => x(tick * unit) < end).map((tick) =>
    `<text class="tick" x="${x(tick * unit).toFixed(1)}" y="${h - 8}" text-anchor="middle">${short(tick)}${letter}</text>`).join("") +
    `<text class="tick" x="${w - MARGIN.right}" y="${h - 8}" text-anchor="end">${name}</text>`;
}
