"use strict";
// Draws the latents in #data. Only the rows in sight and the one card that is looked at exist as elements. Everything is
// text nodes and SVG; nothing is fetched. State (latent, order, search) lives in the address after #.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { ids, fired, density, max, mean, strong, words, windows } = data;
  const ROW = 28, RADIUS = data.radius;
  const $ = (id) => document.getElementById(id);
  const place = new Map(ids.map((id, index) => [id, index]));
  const ORDERS = {
    "density-down": (a, b) => density[b] - density[a] || a - b,
    "density-up": (a, b) => density[a] - density[b] || a - b,
    "max-down": (a, b) => max[b] - max[a] || a - b,
    "mean-down": (a, b) => mean[b] - mean[a] || a - b,
    "id-up": (a, b) => a - b,
  };

  // ---- state ----
  const state = { latent: null, sort: "density-down", find: "", dead: false };
  let shown = []; // indices into the columns, in the order of the list

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (given.get("sort") in ORDERS) state.sort = given.get("sort");
    state.find = given.get("find") || "";
    state.dead = given.get("dead") === "1";
    const wanted = place.get(parseInt(given.get("latent"), 10));
    state.latent = wanted === undefined ? null : wanted;
  }

  function writeAddress() {
    const kept = new URLSearchParams({ sort: state.sort });
    if (state.find) kept.set("find", state.find);
    if (state.dead) kept.set("dead", "1");
    if (state.latent !== null) kept.set("latent", ids[state.latent]);
    history.replaceState(null, "", `#${kept}`);
  }

  // ---- words and numbers ----
  const readable = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
  function digits(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace("-", "−");
    const text = size.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
    return (value < 0 ? "−" : "") + text;
  }
  const percent = (share) => (share === 0 ? "never" : share >= 0.0001 ? `${(100 * share).toPrecision(3)} %` : `${(100 * share).toExponential(1)} %`);
  const count = (number) => number.toLocaleString("en");
  const peakOf = (example) => words[windows[example[0]][example[1]]];
  /** The token at which most of its strongest examples peak; of equals, the strongest one's. */
  function peakWord(index) {
    const times = new Map();
    for (const example of data.top[index]) times.set(peakOf(example), (times.get(peakOf(example)) || 0) + 1);
    let best = "";
    for (const [word, n] of times) if (!best || n > times.get(best)) best = word;
    return best;
  }

  // ---- making elements ----
  function html(name, text = "", className = "", parent = null) {
    const made = document.createElement(name);
    if (text !== "") made.textContent = text;
    if (className) made.className = className;
    if (parent) parent.appendChild(made);
    return made;
  }
  function draw(name, attributes = {}, parent = null, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }

  /** Bars of [{ size, label, title }] with the labels under them, and a mark at a place between 0 and their number. */
  function bars(parent, heights, mark = null, height = 64) {
    const width = 340, foot = 14, step = width / Math.max(heights.length, 6);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height + foot}`, role: "img" }, parent);
    const most = Math.max(...heights.map((bar) => bar.size), 1);
    heights.forEach((bar, index) => {
      const tall = bar.size ? Math.max(1, (bar.size / most) * height) : 0;
      const shape = draw("rect", { class: "bar", x: index * step + 0.5, y: height - tall, width: step - 1, height: tall }, svg);
      draw("title", {}, shape, bar.title);
      if (bar.label) draw("text", { x: index * step, y: height + 11, "text-anchor": index ? "middle" : "start" }, svg, bar.label);
    });
    draw("line", { class: "base", x1: 0, x2: width, y1: height, y2: height }, svg);
    if (mark !== null) draw("line", { class: "mark", x1: mark * step, x2: mark * step, y1: 0, y2: height }, svg);
    return svg;
  }

  // ---- the list ----
  const found = new Map(); // word → indices of words that hold it
  function wordsWith(text) {
    if (!found.has(text)) found.set(text, new Set(words.map((word, index) => (word.toLowerCase().includes(text) ? index : -1)).filter((index) => index >= 0)));
    return found.get(text);
  }

  /** Of a search for a number the latent's index; "#12" is never looked for among tokens. */
  const numbered = (text) => (/^#?\d+$/.test(text) ? place.get(parseInt(text.replace("#", ""), 10)) : undefined);

  function matches(index, text, held) {
    if (text.startsWith("#")) return false;
    if (data.top[index].some((example) => held.has(windows[example[0]][example[1]]))) return true;
    const promoted = data.promoted ? data.promoted[index] : [];
    for (let i = 0; i < promoted.length; i += 2) if (held.has(promoted[i])) return true;
    return false;
  }

  function fill() {
    const text = state.find.trim().toLowerCase();
    const held = text ? wordsWith(text) : new Set(), wanted = numbered(text);
    shown = ids.map((_, index) => index).filter((index) => index !== wanted && (state.dead || fired[index] > 0) && (!text || matches(index, text, held)));
    shown.sort(ORDERS[state.sort]);
    if (wanted !== undefined) shown.unshift(wanted);
    $("rows").style.height = `${shown.length * ROW}px`;
    const dead = fired.filter((number) => number === 0).length;
    $("found").textContent = `${count(shown.length)} of ${count(ids.length)} latents${dead ? `; ${count(dead)} never fire` : ""}`;
    rows();
  }

  function rows() {
    const list = $("list"), box = $("rows");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    box.replaceChildren();
    for (let at = first; at < last; at += 1) {
      const index = shown[at];
      const row = html("div", "", `row${index === state.latent ? " chosen" : ""}`, box);
      row.style.top = `${at * ROW}px`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(index === state.latent));
      html("span", String(ids[index]), "id", row);
      html("span", fired[index] ? readable(peakWord(index)) : "", "word", row);
      html("span", percent(density[index]), "share", row);
      row.addEventListener("click", () => choose(index, false));
    }
  }

  function choose(index, scroll = true) {
    state.latent = index;
    const at = shown.indexOf(index), list = $("list");
    if (scroll && at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight)) {
      list.scrollTop = Math.max(0, at * ROW - list.clientHeight / 2);
    }
    rows();
    card();
    densities();
    writeAddress();
  }

  function step(by) {
    if (!shown.length) return;
    const at = shown.indexOf(state.latent);
    choose(shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))]);
  }

  // ---- how often latents fire ----
  const LOWEST = Math.min(...density.filter((share) => share > 0).map((share) => Math.log10(share)), -2);
  const FLOOR = Math.floor(LOWEST), PER_DECADE = 4;
  function densities() {
    const box = $("densities");
    box.replaceChildren();
    const sizes = new Array(-FLOOR * PER_DECADE).fill(0);
    const bin = (share) => Math.min(sizes.length - 1, Math.floor((Math.log10(share) - FLOOR) * PER_DECADE));
    density.forEach((share) => { if (share > 0) sizes[bin(share)] += 1; });
    const heights = sizes.map((size, index) => ({
      size,
      label: index % PER_DECADE ? "" : `${+(100 * 10 ** (FLOOR + index / PER_DECADE)).toPrecision(1)} %`,
      title: `${count(size)} latents fire at ${percent(10 ** (FLOOR + index / PER_DECADE))} to ${percent(10 ** (FLOOR + (index + 1) / PER_DECADE))} of tokens`,
    }));
    const own = state.latent !== null && density[state.latent] > 0 ? (Math.log10(density[state.latent]) - FLOOR) * PER_DECADE : null;
    bars(box, heights, own, 44);
  }

  // ---- the card ----
  function card() {
    const box = $("card"), index = state.latent;
    box.replaceChildren();
    box.scrollTop = 0;
    if (index === null) { html("p", "No latent matches.", "quiet", box); return; }
    const top = html("div", "", "top", box);
    html("h2", `Latent ${ids[index]}`, "", top);
    for (const [text, by, name] of [["‹", -1, "previous latent in the list"], ["›", 1, "next latent in the list"]]) {
      const button = html("button", text, "", top);
      button.type = "button";
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => step(by));
    }
    figures(index, box);
    if (data.promoted) tokens(index, box);
    const columns = html("div", "", "columns", box);
    near(index, columns);
    histogram(index, columns);
    examples(index, box);
    steered(index, box);
  }

  function figures(index, box) {
    const list = html("dl", "", "figures", box);
    const entries = [["fires at", `${percent(density[index])}${fired[index] ? " of tokens" : ""}`], ["times", count(fired[index])], ["largest activation", digits(max[index])], ["mean where it fires", digits(mean[index])]];
    for (const [name, value] of fired[index] ? entries : [["fires", "never on this corpus"]]) {
      const entry = html("div", "", "", list);
      html("dt", name, "", entry);
      html("dd", value, "", entry);
    }
  }

  function section(title, note, box) {
    const heading = html("h3", `${title} `, "", box);
    if (note) html("small", note, "", heading);
    return box;
  }

  function gauge(parent, share, sign) {
    html("span", "", sign, html("td", "", "gauge", parent)).style.width = `${Math.max(2, 100 * share)}%`;
  }

  function tokens(index, box) {
    const columns = html("div", "", "columns", box);
    for (const [title, rows, sign] of [["Promoted tokens", data.promoted[index], "plus"], ["Suppressed tokens", data.suppressed[index], "minus"]]) {
      const part = section(title, "logits a unit, up to the norm’s scale", html("div", "", "", columns));
      const table = html("table", "", "", part), most = Math.abs(rows[1]) || 1;
      for (let i = 0; i < rows.length; i += 2) {
        const row = html("tr", "", "", table);
        html("td", readable(words[rows[i]]), "token", row);
        gauge(row, Math.abs(rows[i + 1]) / most, sign);
        html("td", digits(rows[i + 1]), "number", row);
      }
    }
  }

  function near(index, box) {
    const rows = data.near[index];
    if (!rows.length) return;
    const table = html("table", "", "", section("Nearest latents", "cosine of decoder directions", html("div", "", "", box)));
    for (let i = 0; i < rows.length; i += 2) {
      const other = place.get(rows[i]), row = html("tr", "", "", table);
      const name = other === undefined ? "" : fired[other] ? readable(peakWord(other)) : "(never fires)";
      html("td", `${rows[i]} ${name}`, "token", row);
      gauge(row, Math.abs(rows[i + 1]), rows[i + 1] < 0 ? "minus" : "even");
      html("td", rows[i + 1].toFixed(3).replace("-", "−"), "number", row);
      if (other === undefined) continue;
      row.className = "link";
      row.tabIndex = 0;
      row.addEventListener("click", () => choose(other));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(other); });
    }
  }

  function histogram(index, box) {
    const [first, ...sizes] = data.histograms[index];
    if (!sizes.length) return;
    const { low, per_octave: per } = data.bins;
    const edge = (bin) => 2 ** (low + (first + bin) / per);
    const every = Math.max(1, Math.ceil(sizes.length / 8));
    const heights = sizes.map((size, bin) => ({ size, label: bin % every ? "" : digits(edge(bin)), title: `${count(size)} between ${digits(edge(bin))} and ${digits(edge(bin + 1))}` }));
    bars(html("div", "", "histogram", section("Activations", "where it fires; logarithmic", html("div", "", "", box))), heights);
  }

  function examples(index, box) {
    if (!data.top[index].length) return;
    section("Strongest examples", "one a window of text, at most", box);
    data.top[index].forEach((example) => one(index, example, box));
    if (!data.sampled[index].length) return;
    section("Examples from all over its activations", "sampled by quantile of the activation", box);
    data.sampled[index].forEach((example) => one(index, example, box));
  }

  function one(index, [window_, peak, value, quantile, ...heat], box) {
    const row = html("div", "", "example", box);
    const said = html("div", digits(value), "value", row);
    if (quantile !== null) html("small", `${Math.round(100 * quantile)} %`, "", said).title = "of windows in which it fires are not larger";
    const text = html("div", "", "text", row), tokens_ = windows[window_], at = new Map();
    for (let i = 0; i < heat.length; i += 2) at.set(heat[i], heat[i + 1]);
    const start = Math.max(0, peak - RADIUS), stop = Math.min(tokens_.length, peak + RADIUS + 1);
    if (start > 0) html("span", "… ", "end", text);
    for (let position = start; position < stop; position += 1) {
      const token = words[tokens_[position]], active = at.get(position - peak) || 0;
      const span = html("span", token.replace(/\n/g, "⏎").replace(/\t/g, "⇥"), position === peak ? "peak" : "", text);
      if (active > 0) span.style.background = `color-mix(in srgb, var(--heat) ${Math.round(12 + 88 * Math.min(1, active / strong[index]))}%, transparent)`;
      span.title = active > 0 ? `${readable(token)}: ${digits(active)}` : readable(token);
    }
    if (stop < tokens_.length) html("span", " …", "end", text);
  }

  function steered(index, box) {
    const rows = data.steered[String(ids[index])];
    if (!rows) return;
    section("Effect of steering", "what the model writes while the latent is raised or lowered; 0 is untouched", box);
    for (const [prompt, strength, added, written] of rows) {
      const row = html("div", "", "steered", box);
      html("div", strength ? `${strength > 0 ? "+" : "−"}${Math.abs(strength)} × strong (${digits(added)})` : "0", "value", row);
      const text = html("div", "", "text", row);
      html("b", prompt, "", text);
      html("span", written.replace(/\n/g, "⏎\u200b").replace(/\t/g, "⇥"), "", text);
    }
  }

  // ---- start ----
  function about() {
    $("title").textContent = data.title;
    $("about").textContent = Object.entries(data.about).map(([name, value]) => `${name} ${typeof value === "number" ? count(value) : value}`).join(" · ");
    data.notes.forEach((note) => html("li", note, "", $("notes-list")));
    $("notes").hidden = !data.notes.length;
  }
  function begin() {
    readAddress();
    $("find").value = state.find;
    $("sort").value = state.sort;
    $("dead").checked = state.dead;
    fill();
    const wanted = state.latent === null && shown.length ? shown[0] : state.latent;
    choose(wanted);
  }
  function changed() {
    $("list").scrollTop = 0;
    fill();
    const wanted = numbered(state.find.trim());
    if (wanted !== undefined || (shown.length && !shown.includes(state.latent))) choose(shown[0]);
    else writeAddress();
  }
  about();
  begin();
  $("find").addEventListener("input", (event) => { state.find = event.target.value; changed(); });
  $("sort").addEventListener("change", (event) => { state.sort = event.target.value; changed(); });
  $("dead").addEventListener("change", (event) => { state.dead = event.target.checked; changed(); });
  $("controls").addEventListener("submit", (event) => { event.preventDefault(); if (shown.length) choose(shown[0]); });
  $("list").addEventListener("scroll", rows);
  $("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  window.addEventListener("resize", rows);
  window.addEventListener("hashchange", begin);
})();
