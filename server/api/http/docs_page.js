"use strict";
// Lists what openapi.json offers. Everything is text nodes; the inside of an operation, and of a schema, is made when it
// is opened, as schemas hold themselves.
(() => {
  const METHODS = ["get", "post", "put", "delete"];
  const $ = (id) => document.getElementById(id);
  let schemas = {};

  function made(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }

  const prose = (text) => text.split("`").map((piece, n) => (n % 2 ? made("code", "", piece) : piece));

  function folded(className, summary, inside) {
    const element = made("details", className, summary);
    element.addEventListener("toggle", () => { if (element.open) element.append(...inside()); }, { once: true });
    return element;
  }

  // ---- schemas ----
  const named = (schema) => (schema.$ref ? schema.$ref.split("/").pop() : null);
  const resolved = (schema) => (schema.$ref ? schemas[named(schema)] || {} : schema);
  const choices = (schema) => schema.oneOf || schema.anyOf || null;

  function typeOf(schema) {
    if (schema.$ref) return named(schema);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.type === "array") return `list of ${typeOf(schema.items || {})}`;
    if (schema.type === "object" && schema.properties) {
      const names = Object.keys(schema.properties);
      return names.length === 1 ? `{ ${names[0]} }` : "object";
    }
    if (schema.type === "object") {
      const values = schema.additionalProperties;
      return values && values !== true ? `object of ${typeOf(values)}` : "object";
    }
    if (choices(schema)) return choices(schema).map(typeOf).join(" or ");
    return [schema.type || "anything"].flat().join(" or ") + (schema.format ? ` (${schema.format})` : "");
  }

  function hasInside(schema) {
    const found = resolved(schema);
    if (found.properties) return true;
    if (found.type === "array") return hasInside(found.items || {});
    if (found.additionalProperties && found.additionalProperties !== true) return hasInside(found.additionalProperties);
    return (choices(found) || []).some(hasInside);
  }

  function insideOf(schema) {
    const found = resolved(schema);
    const said = found.description ? [made("p", "quiet", ...prose(found.description))] : [];
    if (found.properties) return [...said, fieldsOf(found)];
    if (found.type === "array") return [...said, ...insideOf(found.items || {})];
    if (choices(found)) {
      return [...said, made("ul", "fields", ...choices(found).map((choice) => made("li", "", typeView(choice))))];
    }
    if (found.additionalProperties) return [...said, ...insideOf(found.additionalProperties)];
    return said;
  }

  function typeView(schema) {
    if (!hasInside(schema)) return made("span", "type", typeOf(schema));
    return folded("part", made("summary", "type", typeOf(schema)), () => insideOf(schema));
  }

  function fieldsOf(schema) {
    const required = schema.required || [];
    return made("ul", "fields", ...Object.entries(schema.properties).map(([name, field]) => {
      const about = field.description || (hasInside(field) ? "" : resolved(field).description) || "";
      const preset = field.default === undefined ? "" : ` default ${JSON.stringify(field.default)}`;
      return made("li", "",
        made("span", "name", name), " ", typeView(field), preset && made("span", "quiet", preset),
        required.includes(name) ? made("span", "must", " required") : null, about && made("span", "quiet", " ", ...prose(about)));
    }));
  }

  // ---- operations ----
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

  function curl(method, path, operation) {
    const example = (operation["x-example"] || {}).body || {};
    const filled = path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase());
    const base = location.href.split("#")[0].replace(/docs\/?(\?.*)?$/, "").replace(/\/$/, "");
    const words = ["curl"];
    if (method !== "get") words.push("-X", method.toUpperCase());
    words.push(quoted(base + filled), '-H "authorization: Bearer $PROBEWIRE_API_KEY"');
    if (operation.requestBody) {
      words.push("-H 'content-type: application/json'", "-d", quoted(JSON.stringify(example)));
    }
    return words.join(" ");
  }

  function parametersOf(operation) {
    const given = operation.parameters || [];
    if (!given.length) return [];
    return [made("h3", "", "In the address"), made("ul", "fields", ...given.map((parameter) => made("li", "",
      made("span", "name", parameter.name), " ", typeView(parameter.schema || {}),
      parameter.required ? made("span", "must", " required") : null,
      parameter.description ? made("span", "quiet", " ", ...prose(parameter.description)) : null)))];
  }

  function answersOf(operation) {
    return Object.entries(operation.responses || {}).flatMap(([status, answer]) => [
      made("h3", "", ...prose(`Answer ${status === "default" ? "otherwise" : status}: ${answer.description}`)),
      made("ul", "fields", ...Object.entries(answer.content || {}).map(([media, content]) => made("li", "",
        made("span", "name", media), " ", typeView(content.schema || {})))),
    ]);
  }

  function operationView(method, path, operation) {
    const summary = made("summary", "", made("span", `method ${method}`, method), made("span", "path", path),
      made("span", "quiet", operation.summary || ""));
    const view = folded("operation", summary, () => {
      const body = Object.values((operation.requestBody || {}).content || {})[0];
      return [made("div", "inside",
        operation.description ? made("p", "", ...prose(operation.description)) : null,
        made("h3", "", "Try"), made("pre", "", curl(method, path, operation)),
        ...parametersOf(operation),
        ...(body ? [made("h3", "", "Body, JSON"), ...insideOf(body.schema || {})] : []),
        ...answersOf(operation))];
    });
    view.id = `${method}-${path}`;
    view.dataset.words = `${method} ${path} ${operation.summary || ""}`.toLowerCase();
    return view;
  }

  function show(spec) {
    schemas = (spec.components || {}).schemas || {};
    $("title").textContent = spec.info.title;
    $("version").textContent = spec.info.version;
    $("about").textContent = spec.info.summary || "";
    const groups = new Map();
    for (const [path, methods] of Object.entries(spec.paths)) {
      for (const method of METHODS.filter((name) => methods[name])) {
        const tag = (methods[method].tags || ["other"])[0];
        groups.set(tag, [...(groups.get(tag) || []), operationView(method, path, methods[method])]);
      }
    }
    for (const [tag, views] of groups) $("operations").append(made("section", "", made("h2", "", tag), ...views));
    find();
    open();
  }

  function find() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const views = [...document.querySelectorAll(".operation")];
    for (const view of views) view.hidden = !words.every((word) => view.dataset.words.includes(word));
    for (const section of document.querySelectorAll("section")) {
      section.hidden = !section.querySelector(".operation:not([hidden])");
    }
    $("found").textContent = words.length ? `${views.filter((view) => !view.hidden).length} of ${views.length}` : "";
  }

  function open() { // the operation that the address names: docs#post-/v1/generate
    const view = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!view || view.tagName !== "DETAILS") return;
    view.open = true;
    view.scrollIntoView();
  }

  $("find").addEventListener("input", find);
  window.addEventListener("hashchange", open);
  fetch("openapi.json")
    .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`it answered ${answer.status}`))))
    .then(show)
    .catch((error) => {
      $("operations").append(made("p", "problem", `openapi.json could not be read: ${error.message}`));
    });
})();
