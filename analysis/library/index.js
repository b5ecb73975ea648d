"use strict";
// Draws the circuits in #data. Everything is text nodes; nothing is fetched. The chosen one lives in the address after #.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const COLUMNS = [["name", "circuit"], ["category", "category"], ["task", "task"], ["size", "units"], ["faithfulness", "faithful"], ["level", "level"]];
  const NUMBERS = new Set(["size", "faithfulness", "level"]);
  let sort = "name", down = false, find = "", chosen = decodeURIComponent(location.hash.slice(1));

  function make(name, text = "", className = "", parent = null) {
    const element = document.createElement(name);
    if (text !== "") element.textContent = text;
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  }
  const figure = (value) => (value === null ? "" : value.toFixed(2).replace("-", "−"));
  const key = (one) => `${one.name}@${one.version}`;
  const words = (one) => [one.name, one.category, one.description, one.task, one.model, one.id, ...one.tags, ...one.units.map((unit) => unit[0])].join("\n").toLowerCase();
  const searched = new Map(data.circuits.map((one) => [key(one), words(one)]));

  function shown() {
    const asked = find.toLowerCase().split(/\s+/).filter(Boolean);
    const unit = /^\S+\.\d+ (head \d+|#\d+)( @\d+)?$/.test(find); // the name of a unit is itself, not its words
    const fits = (one) => (unit ? one.units.some((named) => named[0] === find) : asked.every((word) => searched.get(key(one)).includes(word)));
    const kept = data.circuits.filter(fits);
    const worth = (one) => (one[sort] === null ? -Infinity : one[sort]);
    return kept.sort((a, b) => (worth(a) < worth(b) ? -1 : worth(a) > worth(b) ? 1 : 0) * (down ? -1 : 1));
  }

  function drawHead() {
    $("head").replaceChildren();
    for (const [name, label] of COLUMNS) {
      const cell = make("th", label + (sort === name ? (down ? " ↓" : " ↑") : ""), NUMBERS.has(name) ? "number" : "", $("head"));
      cell.tabIndex = 0;
      const act = () => { down = sort === name ? !down : NUMBERS.has(name); sort = name; draw(); };
      cell.addEventListener("click", act);
      cell.addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });
    }
  }

  function draw() {
    drawHead();
    const kept = shown();
    $("found").textContent = `${kept.length} of ${data.circuits.length}`;
    $("rows").replaceChildren();
    for (const one of kept) {
      const row = make("tr", "", key(one) === chosen ? "chosen" : "", $("rows"));
      row.tabIndex = 0;
      const name = make("td", "", "", row);
      make("b", one.name, "", name);
      make("span", ` ${one.version}`, "quiet", name);
      make("td", one.category, "", row);
      make("td", one.task, "", row);
      make("td", `${one.size.toLocaleString("en")}`, "number", row);
      make("td", figure(one.faithfulness), "number", row);
      make("td", String(one.level), "number", row);
      const act = () => { chosen = key(one); history.replaceState(null, "", `#${encodeURIComponent(chosen)}`); draw(); };
      row.addEventListener("click", act);
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });
    }
    drawCard(data.circuits.find((one) => key(one) === chosen) || kept[0]);
  }

  function drawCard(one) {
    const card = $("card");
    card.replaceChildren();
    if (!one) { make("p", "No circuit fits.", "quiet", card); return; }
    make("h2", `${one.name} ${one.version}`, "", card);
    if (one.description) make("p", one.description, "", card);
    const list = make("dl", "", "", card);
    const facts = {
      id: one.id, model: `${one.model} ${one.hash.slice(0, 16)}`, task: one.task, metric: one.metric, ablation: one.ablation, "found by": one.method,
      units: `${one.size.toLocaleString("en")} of ${one.of.toLocaleString("en")}` + (one.edges ? `, ${one.edges.toLocaleString("en")} edges` : ""),
      faithfulness: figure(one.faithfulness), "of the rest": figure(one.completeness), tags: one.tags.join(", "), ...one.facts,
    };
    for (const [name, value] of Object.entries(facts)) if (value.trim()) { make("dt", name, "", list); make("dd", value, "", list); }
    make("h3", `Level ${one.level}`, "", card);
    if (!one.checks.length) make("p", "No check is recorded.", "quiet", card);
    else {
      const checks = make("ul", "", "", card);
      for (const [time, level, backend, verdict] of one.checks) make("li", `level ${level}${verdict ? `, ${verdict}` : ""}${backend ? ` on ${backend}` : ""}${time ? `, ${time}` : ""}`, "", checks);
    }
    if (one.claims.length) {
      make("h3", "Claims", "", card);
      const claims = make("ul", "", "", card);
      for (const [unit, role, measure, least] of one.claims) make("li", `${unit}: ${role} (${measure} ≥ ${least})`, "", claims);
    }
    make("h3", one.units.length < one.size ? `Its best ${one.units.length} units` : "Units", "", card);
    const largest = Math.max(...one.units.map((unit) => Math.abs(unit[1])), 1e-30);
    for (const [name, score] of one.units) {
      const row = make("div", "", "unit", card);
      make("span", name, "", row);
      make("i", "", "", make("span", "", "", row)).style.width = `${(100 * Math.abs(score)) / largest}%`;
      make("span", score.toPrecision(3).replace("-", "−"), "", row);
    }
  }

  $("title").textContent = data.title;
  $("find").addEventListener("input", () => { find = $("find").value.trim(); draw(); });
  draw();
})();
