// What a model says about a picture or a text, while it is drawn or typed.

import { field, make, newest, note, path, percent, posted } from "./dom.js";
import { bar } from "./now.js";
import { pad } from "./pad.js";

const SHOWN = 6; // classes

/** The route that tells the class: `recognise` says "unknown", too. */
export const route = (state) => (state.answers.includes("recognise") ? "recognise" : "classify");

/** The classes and how probable each is. It is read out once it rests. */
export function ranking() {
  const list = make("ol", { className: "bars answer" });
  const said = make("p", { className: "said", attributes: { role: "status" } });
  const problem = note();
  let resting = 0;
  return {
    node: make("div", { className: "ranking" }, said, list, problem),
    fail: (error) => problem.say(error.message),
    clear() {
      clearTimeout(resting);
      list.replaceChildren();
      said.textContent = "";
      problem.say("");
    },
    show(answer) {
      problem.say("");
      const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
      list.replaceChildren(...ranked.slice(0, SHOWN).map(([label, share]) => bar(label, share, percent(share))));
      clearTimeout(resting);
      const sentence = verdict(answer);
      resting = setTimeout(() => (said.textContent = sentence), 250);
    },
  };
}

export function verdict(answer) {
  if (answer.unknown) return "Unknown: it resembles none of the classes";
  if (answer.label == null) return "No class was learned yet";
  return `${answer.label}, ${percent(answer.probability)} sure`;
}

export function asking(state, answered = () => {}) {
  const ranked = ranking();
  let body = null;
  const ask = newest(async () => {
    const about = body;
    if (about === null) {
      answered(null, null);
      return ranked.clear();
    }
    try {
      const reply = await posted(path(state.model, route(state)), about, about.type || "text/plain; charset=utf-8");
      const answer = await reply.json();
      if (body !== null) ranked.show(answer);
      answered(answer, about);
    } catch (error) {
      ranked.fail(error);
    }
  });
  const changed = (given) => {
    body = given;
    ask();
  };
  const asks = { refresh: ask, body: () => body };
  if (state.input.kind === "text") {
    const box = make("textarea", { rows: 4, oninput: () => changed(box.value || null) });
    const put = (text) => changed((box.value = text));
    return { ...asks, node: make("div", { className: "pair" }, field("A text", box), ranked.node), put, close() {} };
  }
  const drawn = pad(`Drawing for ${state.model}`, changed);
  const node = make("div", { className: "pair" }, drawn.node, ranked.node);
  return { ...asks, node, put: drawn.show, close: drawn.close };
}
