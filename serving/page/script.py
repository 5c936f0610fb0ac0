"""The script of the page. Text from the server is only ever set as text, never as HTML."""

from __future__ import annotations

SCRIPT = """
"use strict";
const by = id => document.getElementById(id);
let key = "", names = [], sums = {}, count = 0, stop = null;

function tell(text, wrong = false) {
  by("told").textContent = text;
  by("told").classList.toggle("wrong", wrong);
}

async function status() {
  try {
    const found = await (await fetch("/ready")).json();
    by("status").textContent = found.ready ? "ready" : found.faults.join("; ");
    by("status").classList.toggle("ready", found.ready);
  } catch {
    by("status").textContent = "the server does not answer";
    by("status").classList.remove("ready");
  }
}

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

by("enter").addEventListener("submit", async event => {
  event.preventDefault();
  key = by("key").value.trim();
  try {
    const reply = await fetch("/v1/models", {headers: {Authorization: "Bearer " + key}});
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error.message);
    const model = found.data[0];
    names = model.experts.map(one => [one.domain, one.place]);
    by("list").replaceChildren(...model.experts.map(one => element("label", {className: "expert"},
      element("input", {type: "checkbox", checked: true, value: one.domain}),
      element("span", {className: "swatch e" + one.place}), one.domain,
      element("span", {className: "share", id: "share-" + one.domain}),
      element("small", {}, [one.title, one.contact, one.licence].filter(Boolean).join(" \\u00b7 ")))));
    by("experts").disabled = false;
    by("run").disabled = false;
    by("prompt").focus();
    tell("Model " + model.id + ", " + model.digest.slice(0, 12) + ".");
  } catch (error) {
    tell(error.message, true);
  }
});

function show(token) {
  const ranked = Object.entries(token.shares).sort((a, b) => b[1] - a[1]);
  const place = Object.fromEntries(names);
  count += 1;
  for (const [name, share] of ranked) sums[name] = (sums[name] || 0) + share;
  if (token.text) {
    const mark = element("mark", {className: "e" + place[ranked[0][0]], textContent: token.text,
      title: ranked.filter(one => one[1] > 0).map(one => one[0] + " " + (100 * one[1]).toFixed(1) + " %").join(", ")});
    mark.style.setProperty("--s", ranked[0][1]);
    by("answer").append(mark);
  }
  by("bar").replaceChildren(...names.map(([name, n]) => {
    const part = element("span", {className: "e" + n});
    part.style.width = 100 * (sums[name] || 0) / count + "%";
    return part;
  }));
  for (const [name] of names) {
    by("share-" + name).textContent = (100 * (sums[name] || 0) / count).toFixed(0) + " %";
  }
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\\n\\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
    }
  }
}

by("ask").addEventListener("submit", async event => {
  event.preventDefault();
  const experts = [...by("list").querySelectorAll("input:checked")].map(box => box.value);
  if (!experts.length) return tell("Tick at least one expert.", true);
  [sums, count, stop] = [{}, 0, new AbortController()];
  by("answer").replaceChildren(element("span", {className: "prompt", textContent: by("prompt").value}));
  by("bar").replaceChildren();
  by("run").disabled = !(by("stop").disabled = false);
  tell("Running with " + experts.join(", ") + " ...");
  const began = performance.now();
  try {
    const reply = await fetch("/v1/completions", {
      method: "POST", signal: stop.signal,
      headers: {Authorization: "Bearer " + key, "Content-Type": "application/json"},
      body: JSON.stringify({prompt: by("prompt").value, experts, stream: true, shares: true,
        max_tokens: +by("most").value, temperature: +by("temperature").value, seed: +by("seed").value}),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    let reason = "";
    for await (const part of events(reply)) {
      if (part.error) throw new Error(part.error.message);
      for (const choice of part.choices) {
        (choice.tokens || []).forEach(show);
        reason = choice.finish_reason || reason;
      }
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    tell(count + " tokens in " + seconds + " s; " + (reason === "length" ? "cut at its length." : "it ended."));
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped after " + count + " tokens." : error.message, true);
  } finally {
    by("run").disabled = !(by("stop").disabled = true);
  }
});

by("stop").addEventListener("click", () => stop.abort());
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && stop) stop.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("ask").requestSubmit();
});
status();
setInterval(status, 10000);
"""
