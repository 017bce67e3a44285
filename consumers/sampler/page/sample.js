// The view Sample: what each model answers, by tabs.

import { id, make } from "./dom.js";
import { asking } from "./classify.js";
import { film, wipe } from "./film.js";
import { sheet, variations, walk } from "./generate.js";
import { listen, models, service } from "./live.js";
import { retouch } from "./retouch.js";
import { writing } from "./write.js";

export const TITLE = "Sample";

// The title of a tab, the route that it needs, and what makes it.
const PARTS = [
  ["Recognise", "recognise", asking],
  ["Classify", "classify", asking],
  ["Write", "complete", writing],
  ["Draw", "interpolate", sheet],
  ["Film", "strip", film],
  ["Compare", "strip", wipe],
  ["Walk", "interpolate", walk],
  ["Vary", "vary", variations],
  ["Restore", "restore", (state) => retouch(state, "restore", true)],
  ["Restyle", "restyle", (state) => retouch(state, "restyle", false)],
];

const able = (state) =>
  PARTS.filter(
    ([title, route]) => state.answers.includes(route) && !(title === "Classify" && state.answers.includes("recognise")),
  );

export function open(view) {
  const picks = make("nav", { className: "picks", attributes: { "aria-label": "Models" } });
  const place = make("div");
  view.append(make("h1", { textContent: "Ask a model" }), picks, place);
  let wanted = [];
  let shown = null; // { name, answers, update, open, close }

  function choose() {
    const [name, title] = wanted;
    const first = service.models.find((one) => able(models.get(one) ?? { answers: [] }).length);
    return [service.models.includes(name) ? name : first, title];
  }

  function update(kind, changed) {
    const known = service.models.filter((one) => models.has(one));
    const [name, title] = choose();
    const links = known.map((one) => {
      const link = make("a", { href: `#sample/${encodeURIComponent(one)}`, textContent: one });
      if (one === name) link.setAttribute("aria-current", "true");
      return link;
    });
    if (picks.textContent !== known.join("") || picks.dataset.name !== name) picks.replaceChildren(...links);
    picks.dataset.name = name;
    const state = models.get(name);
    if (!state) return gone();
    if (shown?.name !== name || shown.answers !== String(state.answers)) {
      gone();
      shown = { name, answers: String(state.answers), ...panel(state, title) };
      place.replaceChildren(shown.node);
    } else if (kind === "model" && changed === name) shown.update(state);
    else if (kind === "go") shown.open(title);
  }

  function gone() {
    shown?.close();
    shown = null;
    const text = service.models.length || service.up === null ? "" : "No model yet. headrace train MODEL begins one.";
    place.replaceChildren(make("p", { className: "empty", textContent: text }));
  }

  const stop = listen(update);
  return {
    go(rest) {
      wanted = rest;
      update("go");
    },
    close() {
      stop();
      shown?.close();
    },
  };
}

/** One model: its tabs, as https://www.w3.org/WAI/ARIA/apg/patterns/tabs/ has them. */
function panel(state, title) {
  const parts = able(state);
  const tabs = make("div", {
    className: "tabs",
    attributes: { role: "tablist", "aria-label": `What ${state.model} answers` },
  });
  const body = make("div", { id: id("panel"), className: "panel", attributes: { role: "tabpanel", tabindex: 0 } });
  const heading = make("header", {}, make("h2", { textContent: state.model }), make("span", { className: "version" }));
  const node = make("section", { className: "card", attributes: { "aria-label": state.model } }, heading, tabs, body);
  let version = null;
  let shown = null; // { title, refresh, close }
  let last = state;

  for (const [name] of parts) {
    const attributes = { role: "tab", "aria-controls": body.id };
    tabs.append(
      make("button", { type: "button", id: id("tab"), textContent: name, onclick: () => go(name), attributes }),
    );
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -parts.length, End: parts.length }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...tabs.children];
    const at = all.indexOf(document.activeElement) + step;
    const next = Math.abs(step) === 1 ? (at + all.length) % all.length : step < 0 ? 0 : all.length - 1;
    all[next].focus();
    go(parts[next][0]);
  });

  const go = (name) => {
    const address = `#sample/${encodeURIComponent(state.model)}/${encodeURIComponent(name)}`;
    if (location.hash !== address) history.replaceState(null, "", address);
    show(name);
  };

  function show(name) {
    const part = parts.find(([one]) => one === name) ?? parts[0];
    if (!part || shown?.title === part[0]) return;
    shown?.close();
    for (const tab of tabs.children) {
      const is = tab.textContent === part[0];
      tab.setAttribute("aria-selected", String(is));
      tab.tabIndex = is ? 0 : -1;
      if (is) body.setAttribute("aria-labelledby", tab.id);
    }
    shown = { title: part[0], ...part[2](last) };
    body.replaceChildren(shown.node);
    shown.refresh(last);
  }

  function update(now) {
    last = now;
    heading.lastChild.textContent = now.standing ? `version ${now.standing.version}` : "";
    if (!now.standing || now.standing.version === version) return;
    version = now.standing.version;
    shown?.refresh(now);
  }

  tabs.hidden = body.hidden = !parts.length;
  if (!parts.length)
    node.append(
      make("p", { className: "empty", textContent: state.problem ?? "It answers nothing that can be shown here." }),
    );
  heading.lastChild.textContent = state.standing ? `version ${state.standing.version}` : "";
  version = state.standing?.version ?? null;
  show(title);
  return { node, update, open: show, close: () => shown?.close() };
}
