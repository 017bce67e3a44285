// The view History: the versions of a model, what each learned, and which names they have.

import { chooser } from "./chooser.js";
import {
  ask,
  asked,
  button,
  choice,
  clock,
  field,
  figure,
  fill,
  make,
  newest,
  note,
  path,
  question,
  row,
  whole,
} from "./dom.js";
import { learned } from "./learned.js";
import { said } from "./now.js";
import { droppable, picker } from "./pad.js";
import { codesBy, kept, picture } from "./sheets.js";

export const TITLE = "History";
const LAST = 20; // versions that are listed at first
const MOST = 200; // and at most
const READ_MS = 2000; // how often versions that come are read
const POSITION = /^[\w.-]+:\d+:\d+$/;
const STABLE = "stable"; // the name that versions are promoted to

export const open = (view) =>
  chooser(view, {
    hash: "history",
    title: "How a model came to be",
    empty: "No model here has a version yet.",
    able: (state) => state.standing !== null,
    panel: log,
  });

function log(state) {
  const version = make("span", { className: "version" });
  const problem = note();
  const list = make("ol", { className: "log", attributes: { "aria-label": `Versions of ${state.model}` } });
  const older = button("Older", () => ((last = Math.min(MOST, last + LAST)), read()));
  const comparing = compare(state);
  const names = naming(state, () => read());
  let last = LAST;
  let known = 0; // the newest version that was read

  const read = newest(async () => {
    try {
      const entries = await asked(path(state.model, "log", { last }));
      const versions = await kept(state.model);
      known = entries[0]?.version ?? 0;
      names.learn(versions);
      const focused = document.activeElement;
      list.replaceChildren(...entries.map((one) => entry(one, ...(one.digest === null ? [] : [names.promotes(one.version), seen(one)]))));
      if (focused.isConnected) focused.focus({ preventScroll: true });
      older.hidden = entries.length < last || last === MOST;
      comparing.learn(entries);
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  const looks = new Map(); // version → what its last records look like, so that what is open stays open

  function seen({ version, since_parent }) {
    if (!since_parent.learned) return null;
    if (!looks.has(version)) {
      const strip = learned(`Last records of version ${version}`);
      const fetched = async () => {
        try {
          strip.show(state, (await asked(path(state.model, `versions/${version}`))).last ?? []);
        } catch (error) {
          problem.say(error.message);
        }
      };
      const summary = make("summary", { textContent: "Last records" });
      looks.set(version, make("details", { ontoggle: ({ target }) => target.open && fetched() }, summary, strip.node));
    }
    return looks.get(version);
  }

  const update = (now) => {
    state = now;
    version.textContent = `version ${now.standing?.version ?? "–"}`;
  };
  const ticking = setInterval(() => state.standing && state.standing.version !== known && read(), READ_MS);

  update(state);
  read();
  const heading = make("header", {}, make("h2", { textContent: state.model }), version);
  const rest = make("div", { className: "controls" }, comparing.node, names.node, blaming(state));
  const versions = make("div", { className: "controls" }, list, row(older), problem);
  const body = make("div", { className: "halves" }, versions, rest);
  return {
    node: make("section", { className: "card", attributes: { "aria-label": state.model } }, heading, body),
    update,
    close: () => clearInterval(ticking),
  };
}

/** One version of the list; one that is kept is promoted by its button. */
function entry(one, promotes, looks) {
  const outcomes = Object.entries(one.since_parent).map(([outcome, count]) => `${whole(count)} ${outcome}`);
  const ranges = Object.entries(one.ranges).map(([place, [first, end]]) => `${place}:${first}–${end - 1}`);
  const lines = [
    [...outcomes, ...ranges].join(", ") || "no record",
    Object.entries(one.metrics)
      .filter(([name, value]) => value != null && /^(prequential|held_out)_(accuracy|loss)$/.test(name))
      .map(([name, value]) => `${name.replaceAll("_", " ")} ${figure(name, value)}`)
      .join(", "),
    ...one.changes.flatMap((change) => Object.entries(change).map(([kind, what]) => said({ kind, what }))),
  ];
  return make(
    "li",
    {},
    make(
      "p",
      {},
      make("strong", { textContent: `version ${one.version}` }),
      make("time", { textContent: `${new Date(one.created_ms).toLocaleDateString("en-CA")} ${clock(one.created_ms)}` }),
      ...one.aliases.map((alias) => make("span", { className: "alias", textContent: alias })),
      one.digest === null ? make("span", { textContent: "not kept" }) : promotes,
    ),
    ...lines.filter(Boolean).map((textContent) => make("p", { textContent })),
    looks,
  );
}

const numbers = (entries) => entries.map((one) => [String(one.version), `version ${one.version}`]);

/** Two versions' figures and what they draw, side by side; by class where both are kept. */
function compare(state) {
  const table = make("table");
  const drawings = state.answers.includes("strip") ? twoSheets(state) : null;
  const problem = note();
  let entries = [];
  const show = newest(async () => {
    const both = [left, right].map((select) => entries.find((one) => String(one.version) === select.value));
    if (both.includes(undefined)) return;
    try {
      const stored = both.filter((one) => one.digest !== null);
      const about = await Promise.all(stored.map((one) => asked(path(state.model, `versions/${one.version}`))));
      const probes = stored.length === 2 ? about.map((one) => one.probes ?? {}) : [{}, {}];
      const name = (one) => make("th", { scope: "col", textContent: `version ${one.version}` });
      const head = make("tr", {}, make("th", { scope: "col", textContent: "Figure" }), ...both.map(name));
      const metrics = Object.keys({ ...both[0].metrics, ...both[1].metrics }).sort();
      const classes = Object.keys({ ...probes[0], ...probes[1] }).sort();
      const accuracy = (one) => figure("accuracy", one?.now);
      table.replaceChildren(
        make("thead", {}, head),
        make(
          "tbody",
          {},
          line("records learned", ...both.map((one) => whole(one.counts.learned ?? 0))),
          ...metrics.map((key) => line(key.replaceAll("_", " "), ...both.map((one) => figure(key, one.metrics[key])))),
          ...classes.map((label) => line(`class ${label}`, ...probes.map((one) => accuracy(one[label])))),
        ),
      );
      await drawings?.show(both);
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  const line = (name, ...values) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", textContent: name }),
      ...values.map((one) => make("td", { textContent: one })),
    );
  const left = choice([], "", show);
  const right = choice([], "", show);
  const tools = row(field("Compare", left), field("with", right));
  const node = make(
    "section",
    { className: "controls" },
    make("h3", { textContent: "Two versions" }),
    tools,
    table,
    drawings?.node,
    problem,
  );
  return {
    node,
    learn(given) {
      entries = given;
      const options = numbers(given);
      fill(left, options, left.value || options.at(-1)?.[0]);
      fill(right, options);
      show();
    },
  };
}

/** The same codes by two versions; nothing of one that is not kept. */
function twoSheets(state) {
  const sheets = ["First", "Second"].map(picture);
  let shown = ""; // which versions
  return {
    node: make("div", { className: "two" }, ...sheets),
    async show(both) {
      const versions = both.map((one) => one.digest && one.version);
      if (String(versions) === shown) return;
      shown = "";
      for (const [k, version] of versions.entries()) {
        sheets[k].hidden = version === null;
        if (version !== null) await codesBy(sheets[k], state.model, version);
      }
      shown = String(versions);
    },
  };
}

/** Lets an alias name a version, after one question: any alias in a form, `stable` by a button of each version. */
function naming(state, done) {
  const alias = make("input", { type: "text", value: STABLE, maxLength: 100, autocomplete: "off" });
  const select = choice([]);
  const problem = note();
  const naming = question("Name it");
  const buttons = new Map(); // version → its button, so that it keeps the focus
  let names = new Map(); // alias → version

  const wanted = () => {
    const name = alias.value.trim();
    if (!name || !select.value) return problem.say("Give it a name, and choose a version.");
    confirm(name, Number(select.value));
  };
  const confirm = (name, version) => {
    const before = names.get(name);
    const now = before === undefined ? "Nothing has that name yet." : `Now it names version ${before}.`;
    const back = before > version ? ` ${name} goes back.` : "";
    naming.ask(`Let ${name} name version ${version} of ${state.model}? ${now}${back}`, () => set(name, version));
  };
  const set = async (name, version) => {
    try {
      const body = JSON.stringify({ version });
      const url = path(state.model, `aliases/${encodeURIComponent(name)}`);
      await ask(url, { method: "PUT", body, headers: { "Content-Type": "application/json" } });
      problem.say("");
      done();
    } catch (error) {
      problem.say(error.message);
    }
  };
  const tools = row(field("Alias", alias), field("names", select), button("Set …", wanted));
  const title = make("h3", { textContent: "Names" });
  return {
    node: make("section", { className: "controls" }, title, tools, naming.node, problem),
    promotes(version) {
      if (!buttons.has(version)) buttons.set(version, button("", () => confirm(STABLE, version)));
      const node = buttons.get(version);
      node.textContent = names.get(STABLE) > version ? "Roll back" : "Promote";
      node.setAttribute("aria-label", `${node.textContent} to version ${version}`);
      node.hidden = names.get(STABLE) === version;
      return node;
    },
    learn(versions) {
      names = new Map(versions.flatMap((one) => one.aliases.map((name) => [name, one.version])));
      fill(select, numbers(versions).reverse());
    },
  };
}

/** Which version learned a record: by its position, by its id, or by the record itself. */
function blaming(state) {
  const record = make("input", {
    type: "text",
    maxLength: 1000,
    autocomplete: "off",
    placeholder: "topic:partition:offset",
  });
  const found = make("div", { attributes: { role: "status" } });
  const problem = note();
  const tell = newest(async (route, query, options) => {
    found.replaceChildren("It looks …");
    problem.say("");
    try {
      const told = [await asked(path(state.model, route, query), options)].flat();
      found.replaceChildren(...told.map((one) => make("p", { textContent: outcome(one) })));
    } catch (error) {
      found.replaceChildren();
      problem.say(error.message);
    }
  });
  const look = () => {
    const text = record.value.trim();
    if (POSITION.test(text)) tell("blame", { record: text });
    else tell("find", { id: text }, { method: "POST" });
  };
  const see = (body) => tell("find", {}, { method: "POST", body });
  record.addEventListener("keydown", (event) => event.key === "Enter" && look());
  record.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (!file) return;
    event.preventDefault();
    see(file);
  });
  const node = make(
    "section",
    { className: "controls" },
    make("h3", { textContent: "Who learned it" }),
    row(field("Record: position or id", record), button("Find", look), picker(see)),
    make("p", { className: "hint", textContent: "Or drop or paste the file, as it was published." }),
    found,
    problem,
  );
  return droppable(node, see);
}

function outcome({ topic, partition, offset, outcome, version, update }) {
  const by = version === null ? "" : ` by version ${version}`;
  return `${topic}:${partition}:${offset}: ${outcome}${by}${update === null ? "" : `, update ${update}`}`;
}
