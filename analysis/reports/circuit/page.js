"use strict";
// Draws the checks in #data. Everything is text nodes and SVG; nothing is fetched.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { report, levels } = data;
  const facts = report.facts;
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const PARTS = {
    reproduced: "The file’s own figures, measured again (level 1)",
    functional: "It does what it is for (level 2)",
    robust: "Other words, another ablation, the edges (level 3)",
    interpretability: "It is what is said of it (level 3)",
    safety: "What else changes without it",
  };

  function make(name, text = "", className = "", parent = null) {
    const element = document.createElement(name);
    if (text !== "") element.textContent = text;
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  }
  function draw(name, attributes, parent, text = "") {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    parent.append(element);
    return element;
  }
  function number(value, digits = 3) {
    if (value === null || value === undefined) return "none";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
    return text.replace("-", "−");
  }
  const shortened = (bound) => number(Math.round(bound * 1e6) / 1e6);

  // ---- one check: a strip with its interval and its bound ----
  function strip(check, cell) {
    const [low, high] = check.interval.map((end) => (end === null ? check.value : end));
    if (check.value === null) return;
    const ends = [low, high, check.value, check.bound, 0];
    let from = Math.min(...ends), to = Math.max(...ends);
    const room = (to - from || 1) * 0.08;
    from -= room; to += room;
    const x = (value) => 4 + (192 * (value - from)) / (to - from);
    const svg = draw("svg", { width: 200, height: 22, role: "img", "aria-label": `${check.verdict}: ${number(check.value)}, bound ${shortened(check.bound)}` }, cell);
    draw("line", { x1: 4, x2: 196, y1: 11, y2: 11, class: "axis" }, svg);
    draw("line", { x1: x(check.bound), x2: x(check.bound), y1: 2, y2: 20, class: "bound" }, svg);
    if (high > low) draw("line", { x1: x(low), x2: x(high), y1: 11, y2: 11, "stroke-width": 3, class: check.verdict }, svg);
    draw("circle", { cx: x(check.value), cy: 11, r: 4, class: check.verdict }, svg);
  }

  function part(name, title) {
    const found = report.parts[name];
    const head = make("h2", title, "", $("parts"));
    make("span", found.verdict, `verdict ${found.verdict}`, head);
    const table = make("table", "", "checks", $("parts"));
    const row = make("tr", "", "", make("thead", "", "", table));
    for (const [label, kind] of [["", ""], ["check", ""], ["number", "number"], ["bound", "number"], ["", ""]]) make("th", label, kind, row);
    const body = make("tbody", "", "", table);
    for (const check of found.checks) {
      const line = make("tr", "", "", body);
      make("td", check.verdict, `verdict ${check.verdict}`, line);
      const told = make("td", check.name, "", line);
      const more = [check.note, check.items_that_would_decide ? `${check.items_that_would_decide.toLocaleString("en")} items would decide` : "", `n = ${check.n}`].filter(Boolean).join("; ");
      make("div", more, "note", told);
      const value = make("td", number(check.value), "number", line);
      const [low, high] = check.interval;
      if (low !== high) make("div", `${number(low)} to ${number(high)}`, "note", value);
      make("td", `${check.worse === "lower" ? "≥" : "≤"} ${shortened(check.bound)}`, "number", line);
      strip(check, make("td", "", "strip", line));
    }
    for (const one of found.not_tested) {
      const line = make("tr", "", "", body);
      make("td", "not tested", "verdict untested", line);
      const told = make("td", one.name, "", line);
      told.colSpan = 4;
      make("div", one.why, "note", told);
    }
  }

  // ---- what has no bound ----
  function bars(title, note, rows, parent) {
    if (!rows.length) return;
    const box = make("section", "", "", parent);
    make("h3", title, "", box);
    if (note) make("div", note, "note", box);
    const largest = Math.max(...rows.map((row) => Math.abs(row[1])), 1e-30);
    for (const [name, value] of rows) {
      const row = make("div", "", "unit", box);
      make("span", name, "", row);
      make("i", "", value < 0 ? "minus" : "", make("span", "", "", row)).style.width = `${(100 * Math.abs(value)) / largest}%`;
      make("span", number(value), "", row);
    }
  }

  function randoms(parent) {
    if (!facts.random) return;
    const box = make("section", "", "", parent);
    make("h3", "Beside random circuits of its size", "", box);
    make("div", "faithfulness on held-out prompts: the circuit (large), and random ones with as many units at each site", "note", box);
    const all = [...facts.random, facts.faithfulness, 0, 1];
    const from = Math.min(...all), to = Math.max(...all);
    const x = (value) => 14 + (372 * (value - from)) / (to - from || 1);
    const svg = draw("svg", { viewBox: "0 0 400 58", role: "img", "aria-label": "Random circuits" }, box);
    draw("line", { x1: 14, x2: 386, y1: 24, y2: 24, class: "axis" }, svg);
    for (const tick of [0, 1]) {
      draw("line", { x1: x(tick), x2: x(tick), y1: 20, y2: 34, class: "axis" }, svg);
      draw("text", { x: x(tick), y: 46, "text-anchor": "middle" }, svg, tick === 0 ? "0: nothing kept" : "1: the whole model");
    }
    for (const value of facts.random) draw("circle", { cx: x(value), cy: 24, r: 3.5, class: "random" }, svg);
    draw("circle", { cx: x(facts.faithfulness), cy: 24, r: 6, class: "own" }, svg);
  }

  function contexts(parent) {
    const entries = Object.entries(facts.contexts || {});
    if (!entries.length) return;
    const box = make("section", "", "", parent);
    make("h3", "Where its neurons are strongest", "", box);
    for (const [unit, rows] of entries) {
      make("div", unit, "token", box);
      for (const [value, before, token] of rows) {
        const line = make("div", "", "context note", box);
        make("span", `${number(value)}  `, "", line);
        make("span", before.join(""), "token", line);
        make("b", token, "token", line);
      }
    }
  }

  function matrix() {
    const found = data.interference;
    if (!found) return;
    const head = make("h2", "With other circuits", "", $("parts"));
    make("span", found.verdict, `verdict ${found.verdict}`, head);
    make("p", `Faithfulness of each task (rows) under each circuit (columns); ${found.size} units together, ${found.sizes.reduce((a, b) => a + b, 0)} one by one.`, "note", $("parts"));
    const table = make("table", "", "matrix", $("parts"));
    const top = make("tr", "", "", make("thead", "", "", table));
    for (const name of ["", ...found.names, "all together", "random, best"]) make("th", name, "number", top);
    const body = make("tbody", "", "", table);
    found.figures.forEach((row, index) => {
      const line = make("tr", "", "", body);
      make("td", found.names[index], "name", line);
      for (const figure of row) {
        const cell = make("td", number(figure.value), "", line);
        make("div", `${number(figure.interval[0])} to ${number(figure.interval[1])}`, "note", cell);
      }
      make("td", number(Math.max(...found.random[index])), "", line);
    });
  }

  function listed(title, entries, parent) {
    make("h2", title, "", parent);
    const list = make("dl", "", "", parent);
    for (const [name, value] of entries) {
      if (value === null || value === undefined || value === "") continue;
      make("dt", name, "", list);
      make("dd", typeof value === "number" ? number(value) : typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${v}`).join(", ") : String(value), "", list);
    }
  }

  // ---- the page ----
  const about = report.about;
  $("title").textContent = data.title;
  $("about").textContent = `${report.circuit} · ${about.model} · ${about.backend}, ${about.dtype} · ${about.task}, ${about.ablation} ablation · ${about.held_out} held-out prompts · ${report.time}`;
  levels.forEach((name, index) => {
    const item = make("li", "", index <= report.level ? "reached" : "", $("levels"));
    make("b", `${index} `, "", item);
    item.append(name);
  });
  for (const [name, title] of Object.entries(PARTS)) part(name, title);
  matrix();
  make("h2", "Numbers without a bound", "", $("parts"));
  const columns = make("div", "", "columns", $("parts"));
  randoms(columns);
  bars("What the answer loses without each unit", "share of F(M) − F(∅)", Object.entries(facts.necessity || {}), columns);
  bars("Scores in the file", "", data.units, columns);
  contexts(columns);
  const speed = facts.performance || {};
  listed("Cost", [["units", `${speed.units} of ${speed.of}`], ["hooks", speed.hooks], ["speed with all else replaced ÷ plain", speed.speed], ["seconds for this report", facts.seconds], ["Jaccard of re-discovery by chance", facts.stability_by_chance]], $("parts"));
  listed("Provenance", [...Object.entries(about), ["report, sha256", data.report.sha256], ["confirmed by", report.confirmed_by.join("; ")]], $("parts"));
})();
