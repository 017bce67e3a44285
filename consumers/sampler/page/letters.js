// The view Dead letters: what could not be learned, why, and what becomes of it.

import { chooser } from "./chooser.js";
import { asked, button, choice, clock, field, make, newest, note, posted, question, row, whole } from "./dom.js";

export const TITLE = "Dead letters";
const PICTURES = { iVBORw: "png", "/9j/": "jpeg", R0lGOD: "gif", UklGR: "webp" }; // by how their base64 begins
const SHOWN = 300; // characters of a text

const publishes = "publishes" in document.querySelector("main").dataset;

export const open = (view) =>
  chooser(view, {
    hash: "letters",
    title: "What could not be learned",
    empty: "No model here has a version yet.",
    able: (state) => state.topics.length > 0,
    panel: letters,
  });

function letters(state) {
  const reads = state.input.kind === "text";
  const problem = note();
  const empty = make("p", { className: "empty", hidden: true, textContent: "No dead letter is open here." });
  const list = make("ul", { className: "lessons", attributes: { "aria-label": "Dead letters" } });
  const topic = choice(
    [...state.topics, state.labels].filter(Boolean).map((name) => [name, name]),
    undefined,
    () => read(),
  );

  const read = newest(async () => {
    try {
      const found = await asked(place());
      list.replaceChildren(...found.map(letter));
      empty.hidden = found.length > 0;
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  const place = () => `/topics/${encodeURIComponent(topic.value)}/dead-letters`;

  function letter(one) {
    const label = make("input", { type: "text", maxLength: 200, autocomplete: "off", value: one.label ?? "" });
    const text = make("textarea", { value: one.text ?? "", rows: 3 });
    const resolve = async (resolution, mended = {}) => {
      try {
        const { origin, model } = one;
        await posted(place(), JSON.stringify({ origin, model, resolution, ...mended }), "application/json");
        read();
      } catch (error) {
        problem.say(error.message);
      }
    };
    const requeue = () =>
      resolve("requeued", {
        ...(label.value.trim() && label.value !== one.label && { label: label.value }),
        ...(reads && text.value !== (one.text ?? "") && { text: text.value }),
      });
    const fields = row(field("Label", label), ...(reads ? [field("Text", text)] : []));
    const mend = make("details", {}, make("summary", { textContent: "Mend" }), fields);
    const acts = [mend, row(button("Requeue", requeue), button("Drop …", () => drops.ask(`Drop ${one.origin} for ${one.model}? It will not be learned.`, () => resolve("dropped"))))];
    const when = one.sent_ms === null ? "" : ` at ${clock(one.sent_ms)}`;
    const about = make("span", { textContent: `${one.reason}, for ${one.model}${when}: ${one.detail}` });
    return make("li", {}, preview(one), make("strong", { textContent: one.origin }), about, ...(publishes ? acts : []));
  }

  const heading = make("header", {}, make("h2", { textContent: state.model }));
  const tools = row(field("Topic", topic), button("Look again", read));
  const node = make("section", { className: "card", attributes: { "aria-label": state.model } });
  const drops = question("Drop it");
  node.append(heading, tools, problem, empty, list, drops.node);
  read();
  return { node, update() {}, close() {} };
}

/** The picture or the text, as far as it is one. */
function preview({ text, data, bytes }) {
  const kind = Object.entries(PICTURES).find(([start]) => data?.startsWith(start))?.[1];
  if (kind) return make("img", { alt: "the record", src: `data:image/${kind};base64,${data}` });
  if (text) return make("q", { textContent: text.slice(0, SHOWN) });
  return make("span", { textContent: bytes === null ? "at its origin alone" : `${whole(bytes)} bytes` });
}
