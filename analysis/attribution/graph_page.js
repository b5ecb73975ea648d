"use strict";
// Draws the graph in #data: nodes by position and layer, links by influence. Everything is text nodes and SVG; nothing
// is fetched. State (pins, thresholds, measure, search) lives in the address after #, so a view can be kept.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const nodes = data.nodes, links = data.links; // links come strongest first
  const MAX_DRAWN = 1500, LISTED = 8, ROW_MIN = 9.6, ROW_MAX = 26, RADIUS = 4.6;
  const $ = (id) => document.getElementById(id);
  const svg = $("graph");

  // ---- the graph as objects ----
  nodes.forEach((node, index) => { node.index = index; node.ins = []; node.outs = []; node.shape = null; });
  links.forEach((row, index) => {
    const [source, target, weight, flow, share, cumulative] = row;
    const link = { index, source: nodes[source], target: nodes[target], weight, flow, share, cumulative };
    links[index] = link;
    link.source.outs.push(link);
    link.target.ins.push(link);
  });
  const full = {}; // what draws the widest line: a few giants (massive activations) must not thin out all the others
  for (const measure of ["weight", "flow", "share"]) {
    const sizes = links.map((link) => Math.abs(link[measure])).sort((one, other) => one - other);
    full[measure] = sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
  }

  // ---- state ----
  const state = { nodes: data.node_threshold, links: data.link_threshold, measure: "weight", find: "", pins: new Set() };
  let hovered = null;

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name) => {
      const value = parseFloat(given.get(name));
      if (value >= 0 && value <= 1) state[name] = value;
    };
    number("nodes");
    number("links");
    if (["weight", "flow", "share"].includes(given.get("measure"))) state.measure = given.get("measure");
    state.find = given.get("find") || "";
    const named = new Set((given.get("pin") || "").split(",").filter(Boolean));
    state.pins = new Set(nodes.filter((node) => named.has(node.name)).map((node) => node.index));
  }

  function writeAddress() {
    const kept = new URLSearchParams({ nodes: state.nodes, links: state.links, measure: state.measure });
    if (state.find) kept.set("find", state.find);
    if (state.pins.size) kept.set("pin", [...state.pins].map((index) => nodes[index].name).join(","));
    history.replaceState(null, "", `#${kept}`);
  }

  // ---- words ----
  const readable = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
  const cut = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);
  function digits(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
    return (value > 0 ? "+" : value < 0 ? "−" : "") + size.toFixed(size < 1 ? 3 : size < 100 ? 2 : 0);
  }
  function label(node) {
    if (node.kind === "neuron") return `L${node.layer} · neuron ${node.unit}`;
    return node.kind === "embedding" ? `‘${readable(node.text)}’` : `→ ‘${readable(node.text)}’`;
  }
  function place(node) {
    return `position ${node.position} ‘${readable(data.tokens[node.position])}’`;
  }
  function facts(node) {
    const found = [`score ${digits(node.score)}`];
    if (node.activation !== null) found.push(`activation ${digits(node.activation)}`);
    if (node.probability !== null) found.push(`p ${node.probability.toFixed(3)}`);
    if (node.kind !== "logit") found.push(`within the first ${(100 * node.cumulative).toFixed(1)} % of influence`);
    return found.join(" · ");
  }

  // ---- making elements ----
  function element(name, attributes = {}, parent = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.appendChild(made);
    return made;
  }
  function html(name, text = "", className = "", parent = null) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    if (parent) parent.appendChild(made);
    return made;
  }

  // ---- layout ----
  const depth = (node) => (node.kind === "embedding" ? 0 : node.kind === "logit" ? data.n_layers + 1 : node.layer + 1);
  const isShown = (node) => node.kind !== "neuron" || node.cumulative <= state.nodes + 1e-9 || state.pins.has(node.index);

  function layout(shown) {
    const cells = new Map();
    for (const node of shown) {
      const key = `${node.position},${depth(node)}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(node);
    }
    const crowd = data.tokens.map(() => 1);
    for (const members of cells.values()) crowd[members[0].position] = Math.max(crowd[members[0].position], members.length);
    const room = Math.max($("picture").clientWidth - 118, 320);
    const step = RADIUS * 2 + 1.6;
    const wanted = crowd.map((count, position) => Math.max(24, Math.min(count, 14) * step + 12, position === data.tokens.length - 1 ? 60 : 0));
    const total = wanted.reduce((sum, width) => sum + width, 0);
    const stretch = Math.max(1, room / total);
    const rows = data.n_layers + 2;
    const height = Math.min(ROW_MAX, Math.max(ROW_MIN, ($("picture").clientHeight - 110) / rows));
    const columns = [];
    let left = 44;
    wanted.forEach((width) => { columns.push({ left, width: width * stretch }); left += width * stretch; });
    const bottom = 26 + height * rows;
    for (const members of cells.values()) {
      const { left: start, width } = columns[members[0].position];
      const spacing = Math.min(step, (width - 10) / members.length);
      members.sort((one, other) => other.score - one.score);
      members.forEach((node, place) => {
        node.x = start + width / 2 + (place - (members.length - 1) / 2) * spacing;
        node.y = bottom - height * (depth(node) + 0.5);
      });
    }
    return { columns, bottom, height, right: left };
  }

  // ---- drawing ----
  let shapes = null, drawn = null;

  function draw() {
    const shown = nodes.filter(isShown);
    const room = layout(shown);
    svg.replaceChildren();
    const longest = Math.max(...data.tokens.map((token) => Math.min(readable(token).length, 16)));
    const foot = 16 + longest * 5.2;
    svg.setAttribute("width", room.right + 60);
    svg.setAttribute("height", room.bottom + foot);
    backdrop(room);
    drawn = element("g", {}, svg);
    shapes = element("g", {}, svg);
    nodes.forEach((node) => { node.shape = null; });
    shown.forEach(drawNode);
    logitNames(shown, room);
    drawLinks();
    drawPins();
    mark();
    $("nodes-said").textContent = `${percent(state.nodes)}: ${shown.filter((node) => node.kind === "neuron").length} neurons`;
    writeAddress();
  }

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  function backdrop({ columns, bottom, height, right }) {
    columns.forEach(({ left, width }, position) => {
      if (position % 2 === 0) element("rect", { class: "column", x: left, y: 18, width, height: bottom - 18 }, svg);
      const text = element("text", { class: "token", transform: `translate(${left + width / 2 + 3},${bottom + 8}) rotate(-50)`, "text-anchor": "end" }, svg);
      text.textContent = cut(readable(data.tokens[position]), 16);
    });
    const every = Math.ceil(12 / height) * (data.n_layers > 16 ? 3 : 1);
    for (let row = 0; row <= data.n_layers + 1; row += 1) {
      const y = bottom - height * (row + 0.5);
      const name = row === 0 ? "embed" : row === data.n_layers + 1 ? "logits" : (row - 1) % every ? "" : `L${row - 1}`;
      if (!name) continue;
      element("line", { class: "row", x1: 42, x2: right, y1: y, y2: y }, svg);
      element("text", { x: 38, y: y + 3.5, "text-anchor": "end" }, svg).textContent = name;
    }
  }

  const strongest = Math.max(...nodes.map((node) => Math.abs(node.score)), 1e-30);

  function drawNode(node) {
    const strength = 0.18 + 0.82 * Math.sqrt(Math.abs(node.score) / strongest);
    const colour = `color-mix(in srgb, var(${node.score < 0 ? "--minus" : "--plus"}) ${Math.round(100 * strength)}%, var(--line))`;
    let shape;
    if (node.kind === "neuron") shape = element("circle", { cx: node.x, cy: node.y, r: RADIUS }, shapes);
    else if (node.kind === "embedding") shape = element("rect", { x: node.x - 4.5, y: node.y - 4.5, width: 9, height: 9 }, shapes);
    else shape = element("path", { d: `M${node.x},${node.y - 6}l6,6l-6,6l-6,-6z` }, shapes);
    shape.style.fill = colour;
    shape.setAttribute("class", "node");
    shape.setAttribute("tabindex", "0");
    shape.setAttribute("role", "button");
    shape.setAttribute("aria-label", `${label(node)}, ${place(node)}, ${facts(node)}`);
    shape.addEventListener("pointerenter", () => hover(node));
    shape.addEventListener("pointerleave", () => hover(null));
    shape.addEventListener("focus", () => hover(node));
    shape.addEventListener("blur", () => hover(null));
    shape.addEventListener("click", () => pin(node));
    shape.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(node); }
    });
    node.shape = shape;
  }

  function logitNames(shown, room) {
    const logits = shown.filter((node) => node.kind === "logit").sort((one, other) => other.probability - one.probability);
    logits.slice(0, 1).forEach((node) => {
      const text = element("text", { class: "logit", x: Math.min(node.x, room.right), y: 14, "text-anchor": "middle" }, svg);
      text.textContent = `${cut(readable(node.text), 12)} ${Math.round(100 * node.probability)} %`;
    });
  }

  function curve(link) {
    const { x: x1, y: y1 } = link.source, { x: x2, y: y2 } = link.target;
    const bend = (y1 - y2) * 0.45;
    // Within a column, links would lie on each other: they bow out, pushing ones to the right.
    const near = Math.max(0, 1 - Math.abs(x1 - x2) / 30);
    const bow = near * Math.min(46, (y1 - y2) * 0.16) * (link.weight < 0 ? -1 : 1);
    const at = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;
    return `M${at(x1, y1)}C${at(x1 + bow, y1 - bend)} ${at(x2 + bow, y2 + bend)} ${at(x2, y2)}`;
  }

  function drawLinks() {
    drawn.replaceChildren();
    const focus = new Set(state.pins);
    if (hovered) focus.add(hovered.index);
    const can = (link) => link.source.shape && link.target.shape;
    const held = links.filter((link) => can(link) && link.cumulative <= state.links + 1e-9);
    const plain = held.slice(0, MAX_DRAWN);
    for (const link of plain) drawLink(link, focus.size ? 0.07 : 0.34);
    let lit = 0;
    if (focus.size) {
      for (const link of links) {
        const touches = hovered ? link.source === hovered || link.target === hovered : focus.has(link.source.index) || focus.has(link.target.index);
        if (can(link) && touches && (lit < MAX_DRAWN)) { drawLink(link, 0.85); lit += 1; }
      }
    }
    const more = held.length > plain.length ? ` of ${held.length}` : "";
    $("links-said").textContent = `${percent(state.links)}: ${plain.length}${more} links`;
  }

  function drawLink(link, opacity) {
    const size = Math.min(1, Math.abs(link[state.measure]) / full[state.measure]);
    const width = 0.4 + 5.6 * Math.sqrt(size);
    const sign = (state.measure === "flow" ? link.flow : link.weight) < 0 ? "minus" : "plus";
    element("path", { class: `link ${sign}`, d: curve(link), "stroke-width": width.toFixed(2), "stroke-opacity": opacity }, drawn);
  }

  // ---- looking ----
  function hover(node) {
    if (hovered === node) return;
    hovered = node;
    describe(node);
    drawLinks();
    mark();
  }

  function mark() {
    const near = new Set();
    if (hovered) {
      hovered.ins.forEach((link) => near.add(link.source.index));
      hovered.outs.forEach((link) => near.add(link.target.index));
    }
    const matched = matches();
    for (const node of nodes) {
      if (!node.shape) continue;
      node.shape.classList.toggle("near", near.has(node.index));
      node.shape.classList.toggle("hover", node === hovered);
      node.shape.classList.toggle("pin", state.pins.has(node.index));
      node.shape.classList.toggle("match", matched.has(node.index));
      node.shape.setAttribute("aria-pressed", String(state.pins.has(node.index)));
    }
    svg.classList.toggle("searching", matched.size > 0);
    svg.classList.toggle("looking", Boolean(hovered));
    $("found").textContent = state.find ? `${matched.size} found` : "";
  }

  function describe(node) {
    const box = $("details");
    box.replaceChildren();
    if (!node) {
      html("p", "Hover over a node to see what it is and what it is linked to; click to pin it.", "quiet", box);
      return;
    }
    html("div", label(node), "name", box);
    if (node.note) html("div", node.note, "", box);
    html("div", place(node), "", box);
    html("div", facts(node), "quiet", box);
    html("div", `${node.ins.length} inputs, ${node.outs.length} outputs`, "quiet", box);
  }

  function pin(node) {
    if (state.pins.has(node.index)) state.pins.delete(node.index);
    else state.pins.add(node.index);
    if (!node.shape) { draw(); return; }
    drawLinks();
    drawPins();
    mark();
    writeAddress();
  }

  function drawPins() {
    const box = $("pinned");
    box.replaceChildren();
    if (!state.pins.size) html("p", "Nothing yet.", "quiet", box);
    for (const index of state.pins) card(nodes[index], box);
  }

  function card(node, box) {
    const made = html("div", "", "card", box);
    const top = html("div", "", "top", made);
    html("span", label(node), "name", top);
    const close = html("button", "×", "close", top);
    close.type = "button";
    close.setAttribute("aria-label", `unpin ${label(node)}`);
    close.addEventListener("click", () => pin(node));
    if (node.note) html("div", node.note, "", made);
    html("div", place(node), "", made);
    html("div", facts(node), "quiet", made);
    ends("Inputs", node.ins, (link) => link.source, made);
    ends("Outputs", node.outs, (link) => link.target, made);
  }

  function ends(heading, found, other, box) {
    if (!found.length) return;
    const sorted = [...found].sort((one, two) => Math.abs(two.weight) - Math.abs(one.weight));
    html("h3", found.length > LISTED ? `${heading}: ${LISTED} strongest of ${found.length}` : heading, "", box);
    const most = Math.abs(sorted[0].weight) || 1;
    const table = html("table", "", "", box);
    for (const link of sorted.slice(0, LISTED)) {
      const row = html("tr", "", "end", table), end = other(link);
      const bar = html("span", "", `bar ${link.weight < 0 ? "minus" : "plus"}`, html("td", "", "", row));
      bar.style.width = `${Math.max(2, (100 * Math.abs(link.weight)) / most)}%`;
      html("td", `${cut(label(end), 24)} @${end.position}`, "", row);
      html("td", digits(link.weight), "", row);
      row.tabIndex = 0;
      row.addEventListener("pointerenter", () => hover(end));
      row.addEventListener("pointerleave", () => hover(null));
      row.addEventListener("click", () => { hovered = null; if (!state.pins.has(end.index)) pin(end); });
      row.addEventListener("keydown", (event) => { if (event.key === "Enter" && !state.pins.has(end.index)) pin(end); });
    }
  }

  // ---- finding ----
  function matches() {
    const words = state.find.trim().toLowerCase();
    if (!words) return new Set();
    const layer = /^(?:layer|l)\s*(\d+)(?:\D+(\d+))?$/.exec(words);
    const hit = (node) => {
      if (layer) return node.kind === "neuron" && node.layer === +layer[1] && (!layer[2] || node.unit === +layer[2]);
      if (/^\d+$/.test(words)) return node.kind === "neuron" ? node.unit === +words : node.text.trim() === words;
      const text = node.kind === "neuron" ? node.note || "" : node.text;
      return text.toLowerCase().includes(words) || node.name.toLowerCase() === words;
    };
    return new Set(nodes.filter((node) => isShown(node) && hit(node)).map((node) => node.index));
  }

  function legend() {
    const entries = [
      ["M2,2h9v9h-9z", "plus", "embedding (square)"],
      ["M6.5,2a4.5,4.5 0 1 0 0.01,0z", "plus", "neuron (circle)"],
      ["M6.5,0.5l6,6l-6,6l-6,-6z", "plus", "logit (diamond)"],
      ["M0,6.5h13", "plus", "raises its target; of a node: the metric"],
      ["M0,6.5h13", "minus", "lowers it"],
    ];
    entries.forEach(([path, sign, text], place) => {
      const row = html("div", "", "", $("legend"));
      const icon = element("svg", { width: 13, height: 13, "aria-hidden": "true" }, row);
      const colour = `var(--${sign})`;
      const made = element("path", { d: path }, icon);
      if (place < 3) made.style.fill = colour;
      else { made.style.stroke = colour; made.style.strokeWidth = "3"; }
      html("span", text, "", row);
    });
    html("p", "Nodes: colour by score. The node slider keeps the neurons, the link slider the links, that hold so much of all influence on the logits.", "", $("legend"));
  }

  function say() {
    const info = data.info;
    $("title").textContent = data.title;
    $("prompt").textContent = data.prompt;
    const rules = info.rules.length ? `rules ${info.rules.join(", ")}` : "plain gradients";
    $("about").textContent = [info.model, `${info.metric} = ${digits(info.value)}`, rules, `${nodes.length} nodes, ${links.length} links`].join(" · ");
  }

  // ---- start ----
  function syncControls() {
    $("nodes").value = state.nodes;
    $("links").value = state.links;
    $("measure").value = state.measure;
    $("find").value = state.find;
  }
  readAddress();
  syncControls();
  say();
  legend();
  describe(null);
  draw();
  $("picture").scrollLeft = svg.clientWidth; // the answer stands at the right
  $("nodes").addEventListener("input", (event) => { state.nodes = +event.target.value; draw(); });
  $("links").addEventListener("input", (event) => { state.links = +event.target.value; drawLinks(); writeAddress(); });
  $("measure").addEventListener("change", (event) => { state.measure = event.target.value; drawLinks(); writeAddress(); });
  $("find").addEventListener("input", (event) => { state.find = event.target.value; mark(); writeAddress(); });
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    const [first] = matches();
    if (first !== undefined && !state.pins.has(first)) pin(nodes[first]);
  });
  $("clear").addEventListener("click", () => { state.pins.clear(); draw(); });
  window.addEventListener("resize", draw);
  window.addEventListener("hashchange", () => { readAddress(); syncControls(); draw(); });
})();
