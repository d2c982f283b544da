// Follows the runs: asks the server what has changed, and puts it in its place without touching what the reader chose.
const PACE = 2000; // milliseconds between questions; where an answer takes long, ten times as long
const place = (id) => document.getElementById(id);
const known = {}; // by place, the HTML that stands there
let tag = "", report = null, ahead = 0; // `ahead`: milliseconds that the server's clock is ahead of this one

function put(node, html, key = node.id) { // false where nothing changed, or where the reader has marked text
  if (known[key] === html) return false;
  const marked = getSelection();
  if (!marked.isCollapsed && node.contains(marked.anchorNode)) return false;
  const open = [...node.querySelectorAll("details")].map((one) => [one.querySelector("summary")?.textContent, one.open]);
  node.innerHTML = html;
  for (const one of node.querySelectorAll("details")) {
    const before = open.find(([name]) => name === one.querySelector("summary")?.textContent);
    if (before) one.open = before[1];
  }
  known[key] = html;
  return true;
}

function sections(found) { // the sections in order; gives the ids of those that changed
  const parts = place("parts"), changed = new Set();
  const wanted = found.map(([id]) => id);
  for (const section of [...parts.children]) if (!wanted.includes(section.id)) { section.remove(); delete known[section.id]; }
  found.forEach(([id, title, html], i) => {
    let section = place(id);
    if (!section) {
      section = element("section", { id }, element("h2", { textContent: title }), element("div", { className: "content" }));
      parts.insertBefore(section, parts.children[i] || null);
    }
    const content = section.lastElementChild, logs = [...content.querySelectorAll(".log")];
    const scrolled = logs.map((log) => log.scrollTop + log.clientHeight < log.scrollHeight - 8 ? log.scrollTop : null);
    const chosen = id === "samples" ? chosenSample() : null;
    if (!put(content, html, id)) return;
    changed.add(id);
    content.querySelectorAll("pre.log").forEach((log, n) => { log.scrollTop = scrolled[n] ?? log.scrollHeight; });
    if (id === "samples") { sampleSlider(); chooseSample(chosen); }
  });
  if (put(place("links"), wanted.map((id) => `<a href="#${id}"></a>`).join("")))
    [...place("links").children].forEach((link, i) => { link.textContent = found[i][1]; });
  return changed;
}

// The step whose samples are shown, null where the newest are.
function chosenSample() {
  const slider = document.querySelector("#slider input");
  return slider && slider.value !== slider.max ? document.querySelector("#slider output").textContent : null;
}
function chooseSample(label) {
  const slider = document.querySelector("#slider input"), output = document.querySelector("#slider output");
  for (let i = 0; slider && label !== null && i <= slider.max; i++) {
    slider.value = i;
    slider.oninput();
    if (output.textContent === label) return;
  }
}

function show(now) {
  tag = now.tag;
  document.title = now.title;
  for (const id of ["strip", "headline", "notes"]) put(place(id), now[id]);
  const changed = sections(now.sections);
  if (!now.data.charts.length) return;
  if (report && !changed.has("curves") && report.update(now.data)) return;
  report?.stop();
  report = startReport(now.data, report?.view);
}

function clocks() { // what goes on without news: the time left, and since when nothing was heard
  const now = Date.now() + ahead, each = (name, write) => document.querySelectorAll(`[data-${name}]`).forEach((one) => {
    one.textContent = write(Number(one.dataset[name]) * 1000);
  });
  each("left", (done) => duration(Math.max(0, (done - now) / 1000)));
  each("clock", (done) => (done - now > 72e6 ? new Date(done).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })
    : new Date(done).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })));
  each("at", (heard) => { const past = Math.max(0, Math.round((now - heard) / 1000)); return past < 60 ? past + "s" : duration(past); });
}

async function ask() {
  const begun = Date.now(), lost = place("lost");
  try {
    const answer = await fetch("/now", { headers: { "If-None-Match": `"${tag}"` }, cache: "no-store" });
    if (answer.status === 200) show(await answer.json());
    else if (answer.status !== 304) throw new Error(answer.status);
    ahead = new Date(answer.headers.get("Date")).getTime() + 500 - Date.now();
    lost.hidden = true;
    document.querySelector("footer").textContent = "followed live · looked at " + new Date().toLocaleTimeString();
  } catch {
    lost.textContent = "overnight watch does not answer any more: what is shown is from " + new Date().toLocaleTimeString() + " or before.";
    if (lost.hidden) lost.hidden = false;
  }
  clocks();
  setTimeout(next, Math.max(PACE, 10 * (Date.now() - begun)));
}
function next() { // a page that nobody looks at asks nothing
  if (document.hidden) document.addEventListener("visibilitychange", ask, { once: true });
  else ask();
}

show(JSON.parse(document.getElementById("data").textContent));
clocks();
setInterval(clocks, 1000);
setTimeout(ask, 100);
