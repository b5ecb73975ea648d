"use strict";
// Draws the units in #data. Everything is text nodes; nothing is fetched. The chosen unit lives in the address after #.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const NEEDED = 2; // deviations from which a unit has a part in a domain
  const ALL = "all units", HEIGHT = 18, LEFT = 58, WIDTH = 78, RIGHT = 190;
  let kind = ALL, chosen = location.hash ? Number(location.hash.slice(1)) : data.units.length ? data.units[0].unit : -1;

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
    if (text !== "") element.textContent = text;
    parent.append(element);
    return element;
  }
  const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
  const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}%`;
  const largest = Math.max(...data.units.flatMap((one) => one.rates), 1e-9);

  function drawMap() {
    const kept = data.units.filter((one) => kind === ALL || one.kind === kind);
    $("found").textContent = `${kept.length} of ${data.n_units.toLocaleString("en")} units`;
    const map = $("map");
    map.replaceChildren();
    const width = LEFT + WIDTH * data.domains.length + RIGHT, height = (kept.length + 1.5) * HEIGHT;
    map.setAttribute("viewBox", `0 0 ${width} ${height}`);
    map.setAttribute("width", "100%");
    map.style.maxWidth = `${width}px`;
    data.domains.forEach((name, d) => draw("text", { x: LEFT + WIDTH * (d + 0.5), y: 13, "text-anchor": "middle" }, map, name));
    draw("text", { x: LEFT + WIDTH * data.domains.length + 12, y: 13, class: "quiet" }, map, "domains");
    kept.forEach((one, index) => {
      const y = (index + 1.2) * HEIGHT;
      const row = draw("g", { class: `row${one.unit === chosen ? " chosen" : ""}`, tabindex: "0", role: "button" }, map);
      row.setAttribute("aria-label", `unit ${one.unit}, ${one.kind}`);
      draw("rect", { class: "back", x: 0, y, width, height: HEIGHT }, row);
      draw("text", { x: LEFT - 8, y: y + 13, "text-anchor": "end" }, row, `#${one.unit}`);
      one.rates.forEach((rate, d) => {
        draw("rect", { class: "cell", x: LEFT + WIDTH * d + 1, y: y + 1, width: WIDTH - 2, height: HEIGHT - 2, "fill-opacity": 0.06 + (0.94 * rate) / largest }, row);
        draw("title", {}, row.lastChild, `${data.domains[d]}: fires at ${share(rate)} of rows`);
      });
      draw("text", { x: LEFT + WIDTH * data.domains.length + 12, y: y + 13 }, row, number(one.effective, 1));
      draw("text", { x: LEFT + WIDTH * data.domains.length + 42, y: y + 13, class: "quiet" }, row, one.kind + (one.losses ? ", ablated" : ""));
      const act = () => { chosen = one.unit; history.replaceState(null, "", `#${chosen}`); drawMap(); drawCard(); };
      row.addEventListener("click", act);
      row.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
    });
  }

  function drawCard() {
    const card = $("card"), one = data.units.find((unit) => unit.unit === chosen) || data.units[0];
    card.replaceChildren();
    if (!one) { make("p", "No unit fires in several domains.", "quiet", card); return; }
    make("h2", `#${one.unit}: ${one.kind}`, "", card);
    const list = make("dl", "", "", card);
    const facts = {
      "effective domains": `${number(one.effective)} of ${data.domains.length}`,
      "knows of the domain": `${number(one.information, 3)} nats`,
      "the word explains": `${share(Math.max(one.word, 0))} of the variance`,
    };
    for (const [name, value] of Object.entries(facts)) { make("dt", name, "", list); make("dd", value, "", list); }
    const table = make("table", "", "", card), head = make("tr", "", "", make("thead", "", "", table)), body = make("tbody", "", "", table);
    for (const label of ["domain", "fires at", ...(one.losses ? ["loss without it, deviations"] : [])]) make("th", label, "", head);
    data.domains.forEach((name, d) => {
      const row = make("tr", "", "", body);
      make("th", name, "", row);
      make("td", share(one.rates[d]), "", row);
      if (one.losses) make("td", (one.losses[d] < 0 ? "" : "+") + number(one.losses[d], 1), one.losses[d] >= NEEDED ? "enough" : "", row);
    });
    if (one.losses) {
      const parts = one.losses.filter((z) => z >= NEEDED).length;
      make("p", parts >= 2 ? `It has a part in ${parts} domains.` : "It has no part in two domains: 2 deviations in both are needed.", "quiet", card);
    }
    make("h3", "Where it is strongest", "", card);
    if (!one.contexts.some((some) => some.length)) { make("p", "No contexts are kept for this unit.", "quiet", card); return; }
    const columns = make("div", "", "", card);
    columns.id = "contexts";
    data.domains.forEach((name, d) => {
      if (!one.contexts[d].length) return;
      const column = make("div", "", "", columns);
      make("h3", name, "", column);
      for (const text of one.contexts[d]) {
        const [before, rest = ""] = text.split("⟦", 2), [own, after = ""] = rest.split("⟧", 2);
        const line = make("p", "", "", column);
        line.append(before);
        make("mark", own, "", line);
        line.append(after);
      }
    });
  }

  $("title").textContent = data.title;
  $("about").textContent = `${data.rows.map((n, d) => `${data.domains[d]} ${n.toLocaleString("en")} tokens`).join(", ")}. ` +
    Object.entries(data.counts).map(([name, value]) => `${name.trim()} ${Array.isArray(value) ? value.join(", ") || "–" : value.toLocaleString("en")}`).join("; ") + ".";
  for (const line of [...data.told, ...data.notes]) make("li", line, "", $("told"));
  for (const name of [ALL, ...new Set(data.units.map((one) => one.kind))]) make("option", name, "", $("kind"));
  $("scale").textContent = `Colours: share of rows at which a unit fires, 0 to ${share(largest)}. “by its words”: no longer entangled when words are taken into account.`;
  $("kind").addEventListener("change", () => { kind = $("kind").value; drawMap(); });
  drawMap();
  drawCard();
})();
