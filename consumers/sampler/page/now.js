// The view Now: a card a model, which lives as its versions come.

import { chart, grow } from "./chart.js";
import { age, asked, clock, figure, make, note, path, percent, rate, whole } from "./dom.js";
import { learned } from "./learned.js";
import { freshness, listen, models, service } from "./live.js";

export const TITLE = "Now";
const RATE_MS = 10000; // over which records a second are counted
const IDLE_S = 20; // without a new record a stream stands still
const WINDOW = 1000; // records behind the large figure
const EVENTS = 4; // that a card lists
const HISTORY_MS = 5000;
const MOST = 1000; // versions that /history tells at one time

const KINDS = {
  alarm: (what) => (what.name === "cut_ratio" ? "Many texts are cut" : `Alarm: ${what.name}`),
  config: () => "Configuration changed",
  doubtful: (what) => `Records of ${what.topic} are in doubt`,
  drift: (what) => `Drift (${what.reaction})`,
  flush: () => "Old records forgotten",
  guard: (what) => `Guard: ${what.records} records taken out`,
  jump: (what) => `Records of ${what.topic} were gone`,
  loss: () => "Loss far above its range",
  lost: () => "Store came back older",
  replayed: () => "Learned again, with other weights",
};

export function open(view) {
  const cards = new Map();
  const grid = make("div", { className: "cards" });
  const empty = make("p", { className: "empty", textContent: "Looking for models …" });
  view.append(make("h1", { textContent: "What is being learned" }), empty, grid);

  function update(kind, name) {
    for (const [known, card] of cards) if (!service.models.includes(known)) (card.close(), cards.delete(known));
    for (const one of service.models) {
      if (models.has(one) && !cards.has(one)) {
        const card = modelCard(one);
        cards.set(one, card);
        const later = [...cards.keys()].sort().find((other) => other > one);
        grid.insertBefore(card.node, later ? cards.get(later).node : null);
      }
    }
    if (kind === "model") cards.get(name)?.update(models.get(name));
    empty.hidden = cards.size > 0;
    if (service.up !== null) empty.textContent = "No model yet. headrace train MODEL begins one.";
  }

  const stop = listen(update);
  update();
  for (const [name, card] of cards) card.update(models.get(name));
  const ticking = setInterval(
    () => cards.forEach((card, name) => models.has(name) && card.tick(models.get(name))),
    1000,
  );
  return {
    close() {
      stop();
      clearInterval(ticking);
    },
  };
}

/** A term and its value in the list of facts. */
function fact(name) {
  const value = make("dd", { textContent: "–" });
  const node = make("div", {}, make("dt", { textContent: name }), value);
  const say = (text) => {
    node.hidden = text == null;
    if (text != null && value.textContent !== text) value.textContent = text;
  };
  return { node, say };
}

function modelCard(name) {
  const version = make("span", { className: "version" });
  const kind = make("p", { className: "kind" });
  const problem = note();
  const worker = note();
  const advice = make("p", { className: "advice", hidden: true });
  const big = make("span", { className: "big" });
  const meaning = make("span", { className: "meaning" });
  const curve = chart(`Curve of ${name}`);
  const legend = make("p", { className: "legend", hidden: true });
  const facts = Object.fromEntries(
    ["records", "records/s", "lag", "learned", "held out", "replay", "left out"].map((term) => [term, fact(term)]),
  );
  const list = make("dl", { className: "facts" }, ...Object.values(facts).map((one) => one.node));
  const events = make("ul", { className: "events", hidden: true });
  const classes = make("ul", { className: "bars" });
  const last = learned(`Last records of ${name}`);
  const perClass = make("details", { hidden: true }, make("summary", { textContent: "Per class" }), classes);
  const body = make(
    "div",
    { className: "body" },
    make("p", { className: "main" }, big, meaning),
    curve.node,
    legend,
    list,
    last.node,
    perClass,
    events,
  );
  const title = make("h2", { id: `model-${name}`, textContent: name });
  const node = make(
    "section",
    { className: "card", data: { model: name }, attributes: { "aria-labelledby": title.id } },
    make("header", {}, title, version),
    kind,
    problem,
    worker,
    advice,
    body,
  );

  let points = []; // as /history tells them, and each version since
  let marks = [];
  let read = 0; // the version up to which /history was read
  let reading = false;
  let next = 0; // when it may be read again
  let now = null;

  /** Reads what is not read yet, at most every few seconds: versions that were not served here, and what happened. */
  async function history() {
    if (reading || performance.now() < next) return;
    reading = true;
    next = performance.now() + HISTORY_MS;
    try {
      const told = await asked(
        path(name, "history", { last: read ? Math.min(MOST, Math.max(1, now.standing.version - read)) : MOST }),
      );
      const known = new Set(told.points.map((point) => point.version));
      points = [...points.filter((point) => !known.has(point.version)), ...told.points].sort(
        (a, b) => a.version - b.version,
      );
      marks = [...marks.filter((mark) => mark.version <= read), ...told.marks].slice(-MOST);
      read = told.points.at(-1)?.version ?? read;
      show();
    } catch {
      // the next version tries again
    }
    reading = false;
  }

  function show() {
    if (!now?.standing) return;
    const main = mainFigure(now.metrics);
    const line = (metric, title, kind) => ({
      name: title,
      kind,
      points: points
        .filter((point) => point.metrics[metric] != null)
        .map((point) => [point.created_ms, point.metrics[metric]]),
    });
    const lines = [line(main.metric, main.name, "first")];
    if (main.beside) lines.push(line(main.beside, "held out", "second"));
    const shown = marks.map((mark) => ({ ms: mark.created_ms, kind: mark.kind, text: said(mark) }));
    curve.show({ lines, marks: shown, say: main.short, limits: main.limits, least: main.least });
    legend.hidden = !main.beside;
    legend.replaceChildren(key("first", main.name), key("second", "held out"));
    events.hidden = !marks.length;
    const newest = marks.slice(-EVENTS).reverse();
    events.replaceChildren(
      ...newest.map((mark) =>
        make(
          "li",
          { className: mark.kind },
          make("time", { textContent: clock(mark.created_ms) }),
          ` ${said(mark)}, version ${mark.version}`,
        ),
      ),
    );
    tick(now);
  }

  function tick(state) {
    if (!state.standing) return;
    const fresh = freshness(state);
    facts.learned.say(fresh === null ? null : `${age(fresh)} ago`);
    const pace = fresh !== null && fresh > IDLE_S ? 0 : pacing(points);
    facts["records/s"].say(pace === null ? "–" : rate(pace));
    if (read < state.standing.version) history();
  }

  function update(state) {
    now = state;
    problem.say(state.problem && state.standing ? state.problem : "");
    worker.say(working(state.worker, name));
    body.hidden = !state.standing;
    if (!state.standing) {
      kind.textContent = state.problem;
      version.textContent = "";
      [points, marks, read, next] = [[], [], 0, 0];
      return;
    }
    version.textContent = `version ${state.standing.version}`;
    const [topic, ...others] = Object.keys(state.standing.watermark);
    kind.textContent = `${state.learner} learns from ${[topic ?? "nothing yet", ...others].join(", ")}`;
    advice.textContent = Object.values(state.diagnoses).join(" ");
    advice.hidden = !advice.textContent;
    const main = mainFigure(state.metrics);
    big.textContent = main.long(state.metrics[main.metric]);
    const seen = state.counts.learned ?? 0;
    meaning.textContent = seen
      ? `${main.meaning} ${whole(Math.min(seen, WINDOW))}`
      : `Nothing is learned yet. To begin: headrace publish ${topic ?? "TOPIC"} FOLDER`;
    facts.records.say(whole(seen));
    facts.lag.say(state.standing.lag_records == null ? null : whole(state.standing.lag_records));
    facts["held out"].say(main.beside ? figure(main.beside, state.metrics[main.beside]) : null);
    facts.replay.say(state.metrics.replay_fill == null ? null : percent(state.metrics.replay_fill));
    const left = Object.entries(state.counts).filter(([outcome]) => /^(skipped|dead-lettered)/.test(outcome));
    const lost = left.reduce((sum, [, count]) => sum + count, 0);
    facts["left out"].say(lost ? whole(lost) : null);
    facts["left out"].node.title = left.map(([outcome, count]) => `${outcome}: ${count}`).join("\n");
    bars(state.probes);
    last.show(state, state.last);
    const { version: number } = state.standing;
    if (points.length && points.at(-1).version > number) [points, marks, read] = [[], [], 0]; // it began anew
    if (points.at(-1)?.version !== number) {
      grow(points, {
        version: number,
        created_ms: state.created_ms,
        records: state.counts.learned ?? 0,
        metrics: state.metrics,
      });
    }
    show();
  }

  function bars(probes) {
    const rows = Object.entries(probes ?? {}).filter(([, probe]) => probe.now != null);
    perClass.hidden = !rows.length;
    classes.replaceChildren(
      ...rows.map(([label, probe]) =>
        bar(
          label,
          probe.now,
          probe.best > probe.now ? `${percent(probe.now)}, was ${percent(probe.best)}` : percent(probe.now),
        ),
      ),
    );
  }

  return { node, update, tick, close: () => node.remove() };
}

/** A name, a bar as long as the share, and what it says. */
export function bar(label, share, text) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  return make(
    "li",
    {},
    make("span", { className: "label", textContent: label }),
    make("span", { className: "track" }, fill),
    make("span", { className: "value", textContent: text }),
  );
}

/** Why nothing is learned, in a sentence, or nothing. */
function working(worker, name) {
  if (worker === "alive") return "";
  return worker ? `${worker[0].toUpperCase()}${worker.slice(1)}` : `No worker learns it: headrace train ${name}`;
}

const key = (kind, text) => make("span", { className: `key ${kind}` }, text);

/** What happened, in words: of { kind, what }. */
export const said = (mark) => KINDS[mark.kind]?.(mark.what) ?? mark.kind;

/** The figure that a card shows large: accuracy where there is one, else the loss. */
function mainFigure(metrics) {
  if (metrics.prequential_accuracy != null) {
    return {
      metric: "prequential_accuracy",
      beside: metrics.held_out_accuracy != null ? "held_out_accuracy" : null,
      name: "before learning",
      meaning: "right before they were learned, of the last",
      long: percent,
      short: (x) => `${Math.round(100 * x)} %`,
      limits: [0, 1],
      least: 0.1,
    };
  }
  return {
    metric: "prequential_loss",
    beside: metrics.held_out_loss != null ? "held_out_loss" : null,
    name: "loss",
    meaning: "nats of loss before learning, over the last",
    long: (x) => figure("loss", x),
    short: (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2)),
    limits: [-Infinity, Infinity],
    least: 0.02,
  };
}

/** Records a second over the newest points, or null. */
function pacing(points) {
  const newest = points.at(-1);
  const before = points.findLast((point) => newest.created_ms - point.created_ms >= RATE_MS) ?? points[0];
  const ms = newest ? newest.created_ms - before.created_ms : 0;
  return ms > 0 ? (1000 * (newest.records - before.records)) / ms : null;
}
