"""The page at `/docs`: it reads `/openapi.json` and shows it, and nothing else comes from anywhere."""

PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Shimmy API</title>
<style>
:root { --ink: #1c2330; --soft: #5d687a; --paper: #fff; --box: #f5f7fa; --line: #dde3ea; --accent: #0b62c4;
  --get: #0a7d48; --post: #0b62c4; --delete: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --soft: #98a4b5; --paper: #12161c; --box: #1b212a;
  --line: #2d3642; --accent: #6cb0ff; --get: #5fd39b; --post: #6cb0ff; --delete: #ff8f86 } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 6rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { margin: 0 } h2 { margin: 2.5rem 0 .2rem } h3 { margin: 1.2rem 0 .3rem; font-size: 1rem }
p { margin: .3rem 0 .8rem } small, .soft { color: var(--soft) }
code, pre, textarea, .path { font: 14px/1.45 ui-monospace, Menlo, Consolas, monospace }
a { color: var(--accent) }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: 0 .8rem }
details[open] { padding-bottom: .8rem } summary { cursor: pointer; padding: .45rem 0 }
.path { font-weight: 600; overflow-wrap: anywhere; margin: 0 .6rem 0 .2rem }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; font-size: .8rem }
.GET { color: var(--get) } .POST { color: var(--post) } .DELETE { color: var(--delete) }
td details { border: 0; padding: 0; margin: 0 }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid var(--line); padding: .3rem .8rem .3rem 0; vertical-align: top; overflow-wrap: anywhere }
td:first-child { white-space: nowrap; width: 1% } td p { margin: 0 }
b.must { color: var(--delete) }
pre, textarea, input { background: var(--box); color: inherit; border: 1px solid var(--line); border-radius: 6px }
pre { padding: .7rem; margin: .4rem 0; max-height: 30rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere }
textarea { width: 100%; box-sizing: border-box; padding: .7rem; resize: vertical }
input { font: inherit; padding: .25rem .6rem }
button { font: inherit; color: var(--accent); background: none; border: 1px solid; border-radius: 6px;
  padding: .2rem .9rem; cursor: pointer; margin-right: .5rem }
label { display: block; margin: .3rem 0 } label code { display: inline-block; min-width: 8rem }
</style>
<h1>Shimmy API <small id="version"></small></h1>
<p id="about">Reading <code>/openapi.json</code> …</p>
<p><label>API key <input id="key" type="password" autocomplete="off" placeholder="where the server has one"></label></p>
<main id="main"></main>
<noscript><p>This page needs JavaScript. <a href="/openapi.json">/openapi.json</a> has what it shows.</p></noscript>
<script>
"use strict";
const $ = (id) => document.getElementById(id);
let api, model = "MODEL";

function el(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children.filter((child) => child != null));
  return element;
}
const code = (text) => el("code", {}, text);
const headers = (type) => ({ ...type, ...($("key").value && { Authorization: "Bearer " + $("key").value }) });
function resolved(schema) {
  while (schema.$ref) schema = schema.$ref.slice(2).split("/").reduce((value, name) => value[name], api);
  return schema;
}

// What a schema allows, in a few words; null is left out, because it is the same as no field at all.
function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.filter((one) => one !== null).map((one) => JSON.stringify(one)).join(" | ");
  if (schema.properties) return "object";
  const several = schema.anyOf || schema.allOf;
  if (several) return [...new Set(several.map(kind))].filter((text) => text && text !== "null").join(" | ");
  const names = [schema.type ?? "anything"].flat().filter((name, _, all) => name !== "null" || all.length === 1);
  const { minimum: low, maximum: high } = schema;
  const far = 2 ** 31 - 1, open = (bound) => bound == null || Math.abs(bound) >= far;
  if (names[0] === "array" && schema.items) return "array of " + (kind(schema.items) || "values");
  if (open(low) && open(high)) return names.join(" | ");
  return names.join(" | ") + (open(high) ? ` ≥ ${low}` : open(low) ? ` ≤ ${high}` : ` ${low} … ${high}`);
}

// The objects with fields of their own that a schema leads to.
function objects(reference) {
  const schema = resolved(reference);
  if (schema.properties) return [schema];
  return [...(schema.anyOf || []), ...(schema.allOf || []), ...(schema.items ? [schema.items] : [])].flatMap(objects);
}

function notes(schema) {
  if (schema.description) return schema.description;
  return (schema.anyOf || []).map((one) => one.description).find(Boolean);
}

function table(schema) {
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const must = (schema.required || []).includes(name);
    const inner = objects(field).map((object) => lazily("fields", () => [table(object)]));
    const text = notes(field);
    return el("tr", {}, el("td", {}, code(name), must ? el("b", { className: "must", title: "required" }, " *") : null),
      el("td", {}, el("span", { className: "soft" }, kind(field)), text ? el("p", {}, text) : null, ...inner));
  });
  return el("table", {}, ...rows);
}

// Contents are made when they are first looked at.
function lazily(summary, make) {
  const details = el("details", {}, el("summary", {}, summary));
  details.addEventListener("toggle", () => details.append(...make()), { once: true });
  return details;
}

function shownSchema(schema) {
  const found = resolved(schema);
  const tables = objects(found).map((object) => table(object));
  return tables.length ? tables : [el("p", { className: "soft" }, kind(found))];
}

function replies(operation) {
  return Object.entries(operation.responses).map(([status, reply]) => {
    reply = resolved(reply);
    const contents = Object.entries(reply.content || {});
    const shown = ([type, { schema, "x-item-schema": event }]) =>
      [el("p", {}, code(type), event ? " with events of this form:" : ""), ...shownSchema(event || schema)];
    return lazily(`${status} ${reply.description}`, () => contents.flatMap(shown));
  });
}

function attempt(method, path, operation) {
  const media = operation.requestBody?.content["application/json"];
  const fields = (operation.parameters || []).map((parameter) =>
    ({ ...parameter, input: el("input", { value: parameter.name === "model" ? model : "" }) }));
  const example = JSON.stringify(media?.example ?? {}, null, 2).replace('"MODEL"', JSON.stringify(model));
  const body = media && el("textarea", { value: example, rows: example.split("\n").length + 1, spellcheck: false });
  const command = el("pre"), output = el("pre", { hidden: true });
  function url() {
    let filled = path;
    const query = new URLSearchParams();
    for (const { name, in: place, input } of fields) {
      if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(name, input.value);
    }
    return location.origin + filled + (query.size ? "?" + query : "");
  }
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  function write() {
    command.textContent = ["curl -N" + (method === "GET" || media ? "" : " -X " + method) + " " + quoted(url()),
      ...($("key").value ? ["-H \"Authorization: Bearer $SHIMMY_API_KEY\""] : []),
      ...(media ? ["-H 'Content-Type: application/json'", "-d " + quoted(body.value)] : [])].join(" \\\n  ");
  }
  async function send() {
    output.hidden = false;
    output.textContent = "…";
    try {
      const type = media && { "Content-Type": "application/json" };
      const reply = await fetch(url(), { method, headers: headers(type), body: body?.value });
      output.textContent = `${reply.status} ${reply.statusText}\n\n`;
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part; !(part = await reader.read()).done;) output.append(part.value);
    } catch (error) { output.append(String(error)); }
  }
  [...fields.map(({ input }) => input), body, $("key")].forEach((input) => input?.addEventListener("input", write));
  write();
  const labels = fields.map(({ name, input }) => el("label", {}, code(name), " ", input));
  return [el("h3", {}, "Try it"), ...labels, body, command,
    el("button", { onclick: () => navigator.clipboard.writeText(command.textContent) }, "Copy"),
    el("button", { onclick: send }, "Send"), output].filter(Boolean);
}

function shownOperation(path, method, operation) {
  const title = el("span", {},
    el("span", { className: "method " + method }, method), el("span", { className: "path" }, path),
    el("span", { className: "soft" }, operation.summary));
  return lazily(title, () => {
    const parameters = (operation.parameters || []).map(({ name, schema, description, required }) =>
      [name, { ...schema, description }, required]);
    const properties = Object.fromEntries(parameters);
    const required = parameters.filter(([, , must]) => must).map(([name]) => name);
    const media = operation.requestBody?.content["application/json"];
    return [
      ...(parameters.length ? [el("h3", {}, "Parameters"), table({ properties, required })] : []),
      ...(media ? [el("h3", {}, "Body"), ...shownSchema(media.schema)] : []),
      el("h3", {}, "Replies"), ...replies(operation), ...attempt(method, path, operation)];
  });
}

async function load() {
  const reply = await fetch("/openapi.json", { headers: headers() });
  if (!reply.ok) {
    $("about").textContent = reply.status === 401 ? "This server needs its API key." : `/openapi.json: ${reply.status}`;
    return;
  }
  api = await reply.json();
  const models = await fetch("/v1/models", { headers: headers() }).then((found) => found.json()).catch(() => ({}));
  model = models.data?.[0]?.id ?? model;
  $("version").textContent = api.info.version;
  $("about").textContent = api.info.description;
  $("main").replaceChildren(...api.tags.flatMap(({ name, description }) => [
    el("h2", {}, name), el("p", { className: "soft" }, description),
    ...Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods)
      .filter(([, operation]) => operation.tags[0] === name)
      .map(([method, operation]) => shownOperation(path, method.toUpperCase(), operation)))]));
}
$("key").addEventListener("change", () => api || load());
load();
</script>
"""
