// The page: which view is shown, and what the line at the top says.

import { listen, models, service, start } from "./live.js";
import * as explain from "./explain.js";
import * as history from "./history.js";
import * as letters from "./letters.js";
import * as now from "./now.js";
import * as sample from "./sample.js";
import * as teach from "./teach.js";

const VIEWS = { now, teach, sample, explain, history, letters };
const view = document.querySelector("#view");
const state = document.querySelector("#state");

let shown = null; // { name, close, go }

/** `#sample/digits/film` → the view `sample`, and ["digits", "film"]. */
function route() {
  const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return name in VIEWS ? [name, rest] : ["now", []];
}

function show() {
  const [name, rest] = route();
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown?.name !== name) {
    const moved = shown !== null;
    shown?.close();
    view.replaceChildren();
    shown = { name, ...VIEWS[name].open(view) };
    document.title = `${VIEWS[name].TITLE} · headrace`;
    if (moved) view.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  shown.go?.(rest);
}

function say() {
  const [text, kind] = line();
  if (state.textContent !== text) state.textContent = text;
  state.dataset.kind = kind;
}

function line() {
  if (service.up === null) return ["Looking for models …", "waits"];
  if (!service.up) return ["The sampler does not answer", "fails"];
  if (service.store !== null && service.store !== "reachable") return [`Store ${service.store}`, "fails"];
  if (service.problem) return [service.problem, "fails"];
  if (!service.models.length) return ["No model yet: headrace train MODEL", "waits"];
  const live = [...models.values()].filter((model) => model.standing).length;
  return live ? [`Live: ${live} ${live === 1 ? "model" : "models"}`, "live"] : ["Waiting for a first version", "waits"];
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  view.focus();
});
addEventListener("hashchange", show);
listen(say);
show();
start();
