// What the sampler tells by itself: one stream of events for the whole page, and asking again where none comes.

import { asked } from "./dom.js";

const SILENT_MS = 15000; // the stream says every five seconds that it is there
const PATIENT_MS = 1500; // a stream that ends is opened again within this, and nobody need know

/** name → what `/models/{name}` tells, and when it was told (`told`, ms of `performance.now()`). */
export const models = new Map();
export const service = { store: null, problem: null, models: [], up: null };

const listeners = new Set();

/** Calls `told(kind, name)` after each change, until what it returns is called. */
export function listen(told) {
  listeners.add(told);
  return () => listeners.delete(told);
}

function tell(kind, name) {
  for (const told of listeners) told(kind, name);
}

function learned(state) {
  models.set(state.model, { ...state, told: performance.now() });
  tell("model", state.model);
}

function names(given) {
  Object.assign(service, given);
  for (const name of models.keys()) if (!given.models.includes(name)) models.delete(name);
  tell("service");
}

function up(is) {
  if (service.up === is) return;
  service.up = is;
  tell("service");
}

/** The age of the newest learned record, now. */
export const freshness = (state) =>
  state.standing?.freshness_s == null ? null : state.standing.freshness_s + (performance.now() - state.told) / 1000;

let stream = null;
let heard = 0;
let lost = null; // when the stream was lost

function open() {
  stream?.close();
  stream = new EventSource("/events");
  heard = performance.now();
  const on = (kind, act) =>
    stream.addEventListener(kind, (event) => {
      heard = performance.now();
      lost = null;
      up(true);
      act(JSON.parse(event.data));
    });
  on("service", names);
  on("model", learned);
  on("alive", () => {});
  stream.addEventListener("error", () => {
    lost ??= performance.now();
  });
}

/** The way back: the same, by asking. */
async function poll() {
  try {
    const states = await asked("/models");
    up(true);
    names({ models: states.map((state) => state.model) });
    for (const state of states) {
      const known = models.get(state.model);
      if (known?.standing?.digest !== state.standing?.digest || known?.problem !== state.problem || known?.worker !== state.worker) learned(state);
    }
  } catch {
    up(false);
  }
}

async function look() {
  const now = performance.now();
  if (now - heard > SILENT_MS) lost ??= heard;
  if (lost !== null && now - lost > PATIENT_MS) {
    await poll();
    if (service.up && (stream.readyState === EventSource.CLOSED || now - heard > SILENT_MS)) open();
  }
  setTimeout(look, lost === null ? 500 : 1000);
}

export function start() {
  open();
  look();
}
