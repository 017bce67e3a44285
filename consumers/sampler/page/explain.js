// The view Explain: what in a record speaks for its class, and which learned records it resembles.

import { chooser } from "./chooser.js";
import { asking } from "./classify.js";
import { asked, button, choice, dataOf, field, fill, make, newest, note, path, pngOf, posted, row } from "./dom.js";
import { droppable, picker } from "./pad.js";

export const TITLE = "Explain";
const SLIGHT = 0.01; // below this nothing is said of a part
const NAMED = 3; // words
const ROWS = ["upper", "middle", "lower"];
const COLUMNS = ["left", "middle", "right"];

let handed = null; // { model, body } of another view

/** Shows why a model answers as it does, of what another view was given. */
export function why(model, body) {
  handed = { model, body };
  location.hash = `explain/${encodeURIComponent(model)}`;
}

export const open = (view) =>
  chooser(view, {
    hash: "explain",
    title: "Why this answer",
    empty: "No model here has a version that can be explained yet.",
    able: (state) => ["explain", "nearest"].some((route) => state.answers.includes(route)),
    panel: (state) => (state.answers.includes("explain") ? explaining(state) : copying(state)),
  });

const typeOf = (body) => body.type || "text/plain; charset=utf-8";

function card(state, ...parts) {
  const version = make("span", { className: "version" });
  const heading = make("header", {}, make("h2", { textContent: state.model }), version);
  return {
    node: make("section", { className: "card", attributes: { "aria-label": state.model } }, heading, ...parts),
    update: (now) => (version.textContent = `version ${now.standing?.version ?? "–"}`),
  };
}

/** A model that classifies: what it is shown, what of that speaks for the class, and what it looks like. */
function explaining(state) {
  const problem = note();
  const heat = why_();
  const near = neighbours(state, "It looks like these");
  const label = choice([["", "the likeliest"]]);
  const asks = asking(state);
  const ask = () => (asks.body() === null ? problem.say("Draw, choose or type something first.") : tell(asks.body()));
  const go = button("Why?", ask, { className: "primary" });

  const tell = newest(async (about) => {
    problem.say("");
    go.textContent = "It looks …";
    try {
      const told = await posted(path(state.model, "explain", { label: label.value }), about, typeOf(about));
      heat.show(await told.json());
      if (state.answers.includes("nearest")) await near.show(about);
    } catch (error) {
      problem.say(error.message);
    }
    go.textContent = "Why?";
  });

  const tools = row(field("Explain", label), go);
  const keeps = state.answers.includes("nearest");
  const none = `${state.learner} keeps no records that it learned, so none can be shown.`;
  const right = keeps ? near.node : make("p", { className: "hint", textContent: none });
  asks.node.lastChild.append(tools, problem, heat.node);
  const shown = card(state, asks.node, right);
  const update = (now) => {
    shown.update(now);
    fill(label, [["", "the likeliest"], ...now.classes.map((name) => [name, name])]);
    asks.refresh();
  };
  update(state);
  if (handed?.model === state.model) {
    asks.put(handed.body);
    tell(handed.body);
  }
  handed = null;
  return { node: shown.node, update, close: asks.close };
}

/** What speaks for a class, and what against it. */
function why_() {
  const said = make("p", { className: "said", attributes: { role: "status" } });
  const image = make("img", { className: "heat", hidden: true });
  const text = make("p", { className: "text worth", hidden: true, attributes: { tabindex: 0 } });
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", "The words, and what they are worth");
  const key = (kind, name) => make("span", { className: `swatch ${kind}`, textContent: name });
  const legend = make("p", { className: "hint", hidden: true }, key("for", "speaks for it"), key("against", "against it"));
  const version = make("p", { className: "hint" });
  return {
    node: make("div", { className: "controls" }, said, image, text, legend, version),
    show(answer) {
      const sentence = answer.heat ? ofHeat(answer) : ofWords(answer);
      [image.hidden, text.hidden, legend.hidden] = [!answer.heat, !answer.parts, false];
      said.textContent = sentence;
      version.textContent = `By version ${answer.version}`;
      if (answer.heat) Object.assign(image, { src: pngOf(answer.image), alt: `The picture with its heat. ${sentence}` });
      if (answer.parts) text.replaceChildren(...words(answer.parts));
    },
  };
}

/** What is most, above 0 and below it: [for, against], each null where there is none. */
function extremes(weights) {
  const most = Math.max(...weights);
  const least = Math.min(...weights);
  return [most > SLIGHT ? weights.indexOf(most) : null, least < -SLIGHT ? weights.indexOf(least) : null];
}

function sentence(label, pro, contra) {
  if (pro === null && contra === null) return "No part of it makes a difference.";
  const against = contra === null ? "" : `${pro === null ? `Against ${label}` : "; against it"}: ${contra}`;
  return `${pro === null ? "" : `Most for ${label}: ${pro}`}${against}.`;
}

function ofHeat({ heat, label }) {
  const columns = heat[0].length;
  const place = (at) => {
    if (at === null) return null;
    const third = (i, count) => Math.floor((3 * i + 1.5) / count);
    const [row, column] = [third(Math.floor(at / columns), heat.length), third(at % columns, columns)];
    const [y, x] = [ROWS[Math.min(row, 2)], COLUMNS[Math.min(column, 2)]];
    return y === x ? "the middle" : `the ${y} ${x}`;
  };
  return sentence(label, ...extremes(heat.flat()).map(place));
}

function ofWords({ parts, label }) {
  const named = (sign) =>
    parts
      .filter((part) => sign * part.weight > SLIGHT && part.text.trim())
      .sort((a, b) => sign * (b.weight - a.weight))
      .slice(0, NAMED)
      .map((part) => `“${part.text.trim()}”`)
      .join(", ") || null;
  return sentence(label, named(1), named(-1));
}

/** The words, each the stronger the more it is worth. */
function words(parts) {
  const most = Math.max(...parts.map((part) => Math.abs(part.weight)), SLIGHT);
  return parts.flatMap(({ text, weight }) => {
    const word = make("span", { textContent: text.trim(), title: weight.toFixed(2) });
    if (Math.abs(weight) > SLIGHT) word.className = weight > 0 ? "for" : "against";
    word.style.setProperty("--share", Math.abs(weight) / most);
    return [/^\s*/.exec(text)[0], word, text.trim() && /\s*$/.exec(text)[0]];
  });
}

/** The learned records that are nearest to a record. */
function neighbours(state, title) {
  const list = make("ol", { className: "neighbours", attributes: { "aria-label": title } });
  const said = make("p", { className: "hint" });
  const heading = make("h3", { textContent: title, hidden: true });
  return {
    node: make("div", { className: "controls" }, heading, list, said),
    async show(body) {
      const told = await (await posted(path(state.model, "nearest"), body, typeOf(body))).json();
      heading.hidden = false;
      list.replaceChildren(...told.records.map(neighbour));
      said.textContent = `Of ${told.kept} records that version ${told.version} keeps`;
      return told;
    },
  };
}

function neighbour({ distance, label, position, image, text }) {
  const name = label ?? "without a label";
  const record = image
    ? make("img", { src: pngOf(image), alt: `A learned record: ${name}` })
    : text && make("q", { textContent: text });
  const about = make("span", { className: "hint", textContent: `${distance.toFixed(2)} away`, title: position ?? "" });
  return make("li", {}, record, make("strong", { textContent: name }), about);
}

/** A model that draws: whether a drawing is a copy of a record. */
function copying(state) {
  const problem = note();
  const image = make("img", { className: "sheet", alt: "" });
  const said = make("p", { className: "said", attributes: { role: "status" } });
  const near = neighbours(state, "The learned records that are nearest");
  const seed = make("input", { type: "number", min: 0, value: 1, onchange: () => draw() });

  const show = newest(async (file, alt) => {
    problem.say("");
    try {
      Object.assign(image, { src: await dataOf(file), alt });
      const told = await near.show(file);
      said.textContent = told.is_copy ? "It is a copy of the first of these" : "It is no copy of what is kept";
    } catch (error) {
      problem.say(error.message);
    }
  });
  const draw = newest(async () => {
    try {
      const told = await asked(path(state.model, "generate", { n: 1, seed: seed.value, format: "json" }));
      const png = Uint8Array.from(atob(told.images[0]), (c) => c.charCodeAt(0));
      await show(new Blob([png], { type: "image/png" }), `Drawn by version ${told.version}, seed ${seed.value}`);
    } catch (error) {
      problem.say(error.message);
    }
  });
  const given = (file) => show(file, "Your picture");
  const another = button("Draw another", () => ((seed.value = Number(seed.value) + 1), draw()), { className: "primary" });
  const tools = row(field("Seed", seed), another, picker(given));
  const drawn = make("div", { className: "controls" }, image, tools, problem);
  const shown = card(state, droppable(make("div", { className: "pair" }, drawn, make("div", { className: "controls" }, said, near.node)), given));
  shown.update(state);
  draw();
  return { node: shown.node, update: shown.update, close() {} };
}
