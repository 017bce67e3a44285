// The last records that a version learned: what each looks like, its label, and what it was taken for before.

import { asked, make } from "./dom.js";

const EVERY_MS = 2000; // how often pictures are asked for: the sampler reads them from Kafka

const open = "records" in document.querySelector("main").dataset; // else the browser would ask for the token

/** `show(state, last)` takes a model's state, and its `last` or that of one of its versions. */
export function learned(label) {
  const list = make("ul", { className: "learned", hidden: true, attributes: { "aria-label": label } });
  let wanted = null; // the newest that is not shown yet
  let busy = false;

  async function show(state, last) {
    if (!last.length) return;
    list.hidden = false;
    wanted = { ...state, last };
    if (busy) return;
    busy = true;
    while (wanted) {
      const { model, topics, last } = wanted;
      wanted = null;
      const asking = open ? topics.filter((topic) => last.some((one) => cut(one.record)[0] === topic)) : [];
      const seen = await Promise.all(asking.map((topic) => records(model, topic, last)));
      list.replaceChildren(...last.map((one) => item(one, seen.find((some) => some.has(one.record))?.get(one.record))));
      await new Promise((go) => setTimeout(go, EVERY_MS));
    }
    busy = false;
  }

  return { node: list, show };
}

const cut = (record) => record.match(/^(.*):(\d+:\d+)$/).slice(1);

/** record → what it looks like; nothing where the log does not answer. */
async function records(model, topic, last) {
  const query = new URLSearchParams({ model });
  for (const one of last) if (cut(one.record)[0] === topic) query.append("at", cut(one.record)[1]);
  try {
    const shown = await asked(`/topics/${encodeURIComponent(topic)}/records?${query}`);
    return new Map(shown.map((one) => [`${topic}:${one.at}`, one]));
  } catch {
    return new Map();
  }
}

function item({ record, label, predicted }, shown) {
  const content = shown?.image
    ? make("img", { src: `data:image/png;base64,${shown.image}`, alt: `Record ${record}` })
    : make("q", { textContent: shown?.text ?? record });
  if (label === null) return make("li", { title: record }, content);
  const right = predicted === label;
  const told = predicted === null || right ? null : make("small", { textContent: `taken for ${predicted}` });
  const kind = predicted === null ? "new" : right ? "right" : "wrong";
  return make("li", { className: kind, title: record }, content, make("strong", { textContent: label }), told);
}
