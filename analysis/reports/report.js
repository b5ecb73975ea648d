"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const risk = data.format === "probewire.risk";
const SVG = "http://www.w3.org/2000/svg";
const by = (id) => document.getElementById(id);

function made(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function drawn(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function number(value) {
  if (value === null || value === undefined) return "not a number";
  const size = Math.abs(value);
  if (value === 0) return "0";
  return size >= 1000 || size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

function filled(table, heads, rows) {
  const head = made("tr");
  heads.forEach((text) => head.append(made("th", text)));
  table.replaceChildren(head);
  for (const cells of rows) {
    const row = made("tr");
    cells.forEach((cell) => row.append(Array.isArray(cell) ? made("td", cell[0], cell[1]) : made("td", cell)));
    table.append(row);
  }
}

function picture(id, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  by(id).append(svg);
  return svg;
}

function heading() {
  const verdict = risk ? data.level : data.verdict;
  by("title").textContent = document.title;
  by("verdict").textContent = risk ? `risk: ${verdict}` : verdict;
  by("verdict").classList.add(verdict);
  const set = data.set_by;
  if (risk && set) by("why").textContent = `Set by the row “${set.part}” of ${set.of}: ${number(set.value)} ${set.unit}.`;
  if (!risk) {
    const parts = Object.entries(data.suites).map(([name, one]) => `${name}: ${one}`);
    by("why").textContent = parts.join(" · ");
  }
  const variant = data.variant.hash ? `variant ${data.variant.hash}` : "hooks";
  by("about").textContent = `${data.base.id}, model ${data.base.model_hash} · ${variant} · seed ${data.seed} · ${data.seconds} s`;
}

function riskTable() {
  by("table-title").textContent = "What set the level";
  const rows = data.rows.map((row) => [
    row.part,
    row.of,
    [`${number(row.value)} ${row.unit}`, "number"],
    [row.level, row.level],
    [row.limits ? row.limits.map((one) => (one === null ? "–" : number(one))).join(" / ") : "", "number"],
  ]);
  filled(by("table"), ["figure", "of", "value", "level", "low / medium / high up to"], rows);
}

function checkTable() {
  by("table-title").textContent = "Verdicts";
  const rows = data.checks.map((one) => [
    one.suite,
    one.name,
    [one.verdict, one.verdict],
    [number(one.value), "number"],
    [`${number(one.interval[0])} … ${number(one.interval[1])}`, "number"],
    [number(one.bound), "number"],
    [one.base === undefined ? "" : `${number(one.base)} → ${number(one.variant)}`, "number"],
    [one.items_that_would_decide ? `${one.n}; ${one.items_that_would_decide} would decide` : String(one.n), "number"],
    one.note,
  ]);
  filled(by("table"), ["suite", "check", "verdict", "change", "95 %", "bound", "base → changed", "items", ""], rows);
}

function forest() {
  const checks = data.checks.filter((one) => one.value !== null && one.interval[0] !== null && one.bound !== 0);
  if (!checks.length) return by("forest-part").remove();
  const sign = (one) => (one.worse === "lower" ? 1 : -1);
  const scaled = (one, value) => (sign(one) * value) / Math.abs(one.bound);
  const ends = checks.flatMap((one) => one.interval.map((end) => scaled(one, end)));
  const low = Math.max(-8, Math.min(-1.5, ...ends)), high = Math.min(4, Math.max(1, ...ends));
  const width = 900, left = 270, row = 26, height = row * checks.length + 40;
  const x = (value) => left + ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * (width - left - 20);
  const svg = picture("forest", width, height);
  for (const at of [0, -1]) {
    drawn(svg, "line", { x1: x(at), x2: x(at), y1: 8, y2: height - 26, class: at ? "bound" : "axis" });
    const told = { x: x(at) + (at ? -4 : 4), y: height - 8, "text-anchor": at ? "end" : "start", class: "dim" };
    drawn(svg, "text", told, at ? "as bad as allowed" : "no change");
  }
  checks.forEach((one, i) => {
    const y = row * i + 22;
    const group = drawn(svg, "g", { class: one.verdict });
    drawn(svg, "text", { x: left - 12, y: y + 4, "text-anchor": "end" }, one.name);
    const [a, b] = one.interval.map((end) => x(scaled(one, end)));
    drawn(group, "line", { x1: Math.min(a, b), x2: Math.max(a, b, Math.min(a, b) + 1), y1: y, y2: y, class: "line" });
    drawn(group, "circle", { cx: x(scaled(one, one.value)), cy: y, r: 4, class: "dot" });
  });
}

function divergence() {
  const check = risk ? (data.dry_run || {}).kl : (data.checks.find((one) => one.name === "KL to base") || {}).details;
  if (!check || !check.values) return by("kl-part").remove();
  const values = check.values.filter((one) => one !== null), floor = 1e-7;
  const logs = values.map((one) => Math.log10(Math.max(one, floor)));
  const low = Math.floor(Math.min(...logs)), high = Math.max(low + 1, Math.ceil(Math.max(...logs)));
  const bins = 32, counts = Array(bins).fill(0);
  logs.forEach((one) => counts[Math.min(bins - 1, Math.floor(((one - low) / (high - low)) * bins))]++);
  const width = 900, height = 180, edge = 50, most = Math.max(...counts), step = (width - 2 * edge) / bins;
  const svg = picture("kl", width, height);
  counts.forEach((count, i) => {
    const tall = (count / most) * (height - 50);
    drawn(svg, "rect", { x: edge + i * step + 1, y: height - 30 - tall, width: step - 2, height: tall, class: "bar" });
  });
  for (let at = low; at <= high; at++) {
    const x = edge + ((at - low) / (high - low)) * (width - 2 * edge);
    drawn(svg, "text", { x, y: height - 10, "text-anchor": "middle", class: "dim" }, `10^${at} nats`);
  }
  filled(by("worst"), ["largest", "KL", "text"], check.worst.map((one) => [`#${one.index}`, [number(one.kl), "number"], one.text || ""]));
}

function more() {
  const part = by("more");
  if (risk) {
    const curve = (data.dry_run || {}).curve;
    if (!curve) by("curve-part").remove();
    else filled(by("curve"), ["scale", "general KL"], curve.map((one) => [[number(one.scale), "number"], [number(one.kl), "number"]]));
    const probes = Object.entries((data.dry_run || {}).probes || {});
    if (probes.length) {
      const table = made("table");
      filled(table, ["probe", "right before", "after", "of", "difference", "predicted", "agreement"], probes.map(([name, one]) => [
        name, [one.right[0], "number"], [one.right[1], "number"], [one.n, "number"],
        [`${number(one.difference.value)} (${number(one.difference.interval[0])} … ${number(one.difference.interval[1])})`, "number"],
        [(data.first_order || {})[name] ? number(data.first_order[name].change) : "–", "number"],
        [one.agreement === undefined ? "–" : number(one.agreement), "number"],
      ]));
      part.append(made("h2", "Probes"), made("p", "Logit differences; agreement is the correlation of predicted and measured change over examples.", "note"), table);
    }
    if (data.mitigations.length) {
      const list = made("ul");
      data.mitigations.forEach((text) => list.append(made("li", text)));
      part.append(made("h2", "What would lower it"), list);
    }
    part.append(made("h2", "Undoing it"), made("p", data.reversibility));
  } else {
    by("curve-part").remove();
    const speed = data.performance || {};
    if (speed.base) part.append(made("h2", "Speed"), made("p", `${speed.base} tokens a second without, ${speed.variant} with it; one answer each, one after the other.`));
    if (data.cannot_show_harm.length) part.append(made("p", `Cannot show harm, as the base is at chance: ${data.cannot_show_harm.join(", ")}.`, "note"));
  }
}

function examples() {
  const rows = [];
  for (const check of data.checks || []) {
    for (const one of (check.details || {}).examples || []) rows.push([one.prompt || `#${rows.length}`, one.before || "", one.after || ""]);
    for (const one of (check.details || {}).changed || []) rows.push([one.prompt || `${check.name} #${one.index}`, ...one.right.map((right) => (right ? "right" : "wrong"))]);
  }
  if (!rows.length) return by("examples-part").remove();
  filled(by("examples"), ["prompt", "base", "changed"], rows.slice(0, 40));
}

heading();
if (risk) { riskTable(); by("forest-part").remove(); } else { checkTable(); forest(); }
divergence();
more();
examples();
data.not_tested.forEach((text) => by("not").append(made("li", text)));
if (!data.not_tested.length) by("not-part").remove();
