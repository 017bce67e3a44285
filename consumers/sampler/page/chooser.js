// A view of one model at a time: which one, and its panel.

import { make } from "./dom.js";
import { listen, models, service } from "./live.js";

/**
 * `able(state)` says which models are shown; `panel(state)` makes { node, update, close } of one.
 */
export function chooser(view, { hash, title, empty, able, panel }) {
  const picks = make("nav", { className: "picks", attributes: { "aria-label": "Models" } });
  const place = make("div");
  view.append(make("h1", { textContent: title }), picks, place);
  let wanted = null;
  let shown = null; // { name, node, update, close }

  function update(kind, changed) {
    const names = service.models.filter((name) => models.has(name) && able(models.get(name)));
    const name = names.includes(wanted) ? wanted : names[0];
    if (picks.textContent !== names.join("") || picks.dataset.name !== name) {
      picks.replaceChildren(
        ...names.map((one) => {
          const link = make("a", { href: `#${hash}/${encodeURIComponent(one)}`, textContent: one });
          if (one === name) link.setAttribute("aria-current", "true");
          return link;
        }),
      );
    }
    picks.dataset.name = name;
    if (name === undefined) {
      shown?.close();
      shown = null;
      place.replaceChildren(make("p", { className: "empty", textContent: service.up === null ? "" : empty }));
    } else if (shown?.name !== name) {
      shown?.close();
      shown = { name, ...panel(models.get(name)) };
      place.replaceChildren(shown.node);
    } else if (kind === "model" && changed === name) shown.update(models.get(name));
  }

  const stop = listen(update);
  return {
    go([name]) {
      wanted = name;
      update();
    },
    close() {
      stop();
      shown?.close();
    },
  };
}
