"use strict";
// What report.js draws with: numbers as people read them, and the arithmetic of curves and axes.

// ---- numbers as people read them ----
const escapeText = (text) => text.replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
const trim = (value, digits) => String(Number(value.toPrecision(digits)));
const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
function short(value) {
  if (Math.abs(value) >= 1e15) return value.toExponential(1).replace("e+", "e");
  const unit = Math.abs(value) >= 1e4 && UNITS.find(([size]) => Math.abs(value) >= size);
  return unit ? trim(value / unit[0], 4) + unit[1] : Number(value.toPrecision(5)).toLocaleString("en-US");
}
function plain(value) {
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4)) return trim(value, 4);
  return Math.abs(value) < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : short(value);
}
function duration(seconds) {
  const minutes = Math.round(seconds / 60), two = (n) => String(n).padStart(2, "0");
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + "s";
  if (seconds < 3600) return Math.floor(seconds / 60) + "m " + two(Math.floor(seconds % 60)) + "s";
  if (minutes < 48 * 60) return Math.floor(minutes / 60) + "h " + two(minutes % 60) + "m";
  return Math.floor(minutes / 1440) + "d " + Math.floor((minutes % 1440) / 60) + "h";
}
const timeUnit = (span) => (span > 7200 ? [3600, "h"] : span > 180 ? [60, "m"] : [1, "s"]);

// ---- curves ----
// The value at `x` of the straight lines through points (xs, ys); points without a number are passed over.
function between(xs, ys, x) {
  let high = lowerBound(xs, x), low = Math.min(high, xs.length) - (xs[high] === x ? 0 : 1);
  while (low >= 0 && ys[low] === null) low--;
  while (high < xs.length && ys[high] === null) high++;
  if (low < 0) return ys[high] ?? null;
  if (high >= xs.length || high === low) return ys[low];
  return ys[low] + ((x - xs[low]) / (xs[high] - xs[low])) * (ys[high] - ys[low]);
}
function lowerBound(xs, x) {
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low;
}
function nearest(xs, x) {
  const high = lowerBound(xs, x);
  if (high === 0) return 0;
  return high < xs.length && xs[high] - x < x - xs[high - 1] ? high : high - 1;
}
// A moving mean that looks back as far as ahead, as smooth() in thin.py.
function smooth(ys, share) {
  const half = share > 0 && ys.length > 2 ? Math.max(1, Math.round((ys.length * share) / 2)) : 0;
  return half ? meanAround(meanAround(ys, half), half) : ys;
}
function meanAround(ys, half) {
  const count = ys.length, total = [0], number = [0];
  ys.forEach((y, i) => { total.push(total[i] + (y ?? 0)); number.push(number[i] + (y === null ? 0 : 1)); });
  return ys.map((y, i) => {
    const reach = Math.min(i, half), low = i - reach, high = Math.min(i + reach, count - 1) + 1;
    return y === null ? null : (total[high] - total[low]) / (number[high] - number[low]);
  });
}
// ---- axes ----
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10, 20].find((factor) => power * factor >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(i * step);
  return found;
}
function logTicks(low, high, room) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  if (high / low < 6) return ticks(low, high, Math.min(room, 5));
  for (let every = 0; ; every++) { // 0 stands for every power of ten with its 2 and 5
    const found = [];
    for (let power = first; power <= last; power++)
      if (power % (every || 1) === 0) for (const factor of every ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
    const inside = found.filter((tick) => tick >= low && tick <= high);
    if (inside.length <= room || every > last - first) return inside;
  }
}
function scale(low, high, start, end, log) {
  const f = log ? Math.log : (value) => value, base = f(low), span = f(high) - base;
  const to = (value) => start + ((f(log ? Math.max(value, low / 1e3) : value) - base) / span) * (end - start);
  to.back = (at) => { const v = base + ((at - start) / (end - start)) * span; return log ? Math.exp(v) : v; };
  return to;
}
const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
