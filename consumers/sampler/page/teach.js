// The view Teach: show a model something, say what it is, and watch it learn that.

import { chooser } from "./chooser.js";
import { asking, route, verdict } from "./classify.js";
import { ask, asked, button, choice, dataOf, field, id, make, newest, note, path, posted, row } from "./dom.js";
import { why } from "./explain.js";
import { droppable, picker } from "./pad.js";
import { MOST } from "./sheets.js";

export const TITLE = "Teach";
const LESSONS = 12; // that are listed
const TRIES = 10; // times that a version is waited for, half a minute each
const SHEET = 16; // drawings
const BEGINNING = 12; // characters of a taught text, from which the model goes on
const GOES_ON = 160; // bytes that it writes then
const CLOSED = "This sampler publishes nothing: sampler.publish = false.";

const publishes = "publishes" in document.querySelector("main").dataset;
const classifies = (state) => state.answers.includes("classify");
const draws = (state) => state.answers.includes("interpolate");
const writes = (state) => state.answers.includes("complete");

export const open = (view) =>
  chooser(view, {
    hash: "teach",
    title: "Teach a model",
    empty: "No model here has a version that can be taught yet.",
    able: (state) => classifies(state) || draws(state) || writes(state),
    panel: (state) => (classifies(state) ? lesson(state) : draws(state) ? feeding(state) : telling(state)),
  });

/** A model's name and version, where it is taught, the labels that it knows, and what it was taught. */
function frame(state, body, say) {
  const version = make("span", { className: "version" });
  const labels = make("datalist", { id: id("labels") });
  const attributes = { list: labels.id };
  const label = make("input", { type: "text", maxLength: 200, autocomplete: "off", attributes });
  const topic = choice(state.topics.map((name) => [name, name]));
  const choosing = field("Topic", topic);
  choosing.hidden = state.topics.length < 2;
  const problem = note();
  const live = { "aria-label": "What was taught", "aria-live": "polite" };
  const list = make("ul", { className: "lessons", attributes: live });
  const heading = make("header", {}, make("h2", { textContent: state.model }), version);
  const where = `What you teach is published to ${state.topics.join(" or ")}, for all that learn from it.`;
  const hint = make("p", { className: "kind", textContent: publishes ? where : CLOSED });
  const tools = row(choosing, ...say(label));
  tools.hidden = !publishes;
  const parts = [heading, hint, body, tools, labels, problem, list];
  return {
    node: make("section", { className: "card", attributes: { "aria-label": state.model } }, ...parts),
    problem,
    label,
    topic: () => topic.value,
    /** Lists what was taught; returns the place for what becomes of it. */
    add(thumb, name) {
      const said = make("span");
      list.prepend(make("li", {}, thumb, name && make("strong", { textContent: name }), said));
      while (list.children.length > LESSONS) list.lastChild.remove();
      return said;
    },
    update(now) {
      version.textContent = `version ${now.standing?.version ?? "–"}`;
      labels.replaceChildren(...now.classes.map((value) => make("option", { value })));
    },
  };
}

/** What is answered by a version that has learned it; `null` where the view was left, or it takes too long. */
async function patiently(work, said, open) {
  for (let tries = 0; open() && tries < TRIES; tries++) {
    try {
      return await work();
    } catch (error) {
      said.textContent = error.message;
      if (error.status !== 504) return null;
    }
  }
  return null;
}

/** A picture as a record in JSON. */
async function encoded(file) {
  const data = (await dataOf(file)).split(",")[1];
  return { data, content_type: file.type || "application/octet-stream" };
}

const thumbOf = async (taught) =>
  typeof taught === "string" ? make("q", { textContent: taught }) : make("img", { alt: "", src: await dataOf(taught) });

/** A model that classifies: what it is shown, what it answers, and what it was taught. */
function lesson(state) {
  const right = button("Right", () => teach(answer?.label), { disabled: true });
  const other = button("Teach", () => teach(all.label.value.trim()), { className: "primary" });
  const because = button("Why?", () => why(state.model, body), { disabled: true });
  let body = null;
  let answer = null;
  let open = true;

  const asks = asking(state, (given, about) => {
    [answer, body] = [given, about];
    because.disabled = answer?.label == null;
    right.disabled = answer?.label == null;
    right.textContent = answer?.label == null ? "Right" : `Right: ${answer.label}`;
  });
  asks.node.lastChild.append(row(because));
  const all = frame(state, asks.node, (label) => [right, field("It is …", label), other]);
  all.label.addEventListener("keydown", (event) => event.key === "Enter" && other.click());
  const mending = state.labels
    ? `Undo publishes a correction to ${state.labels}.`
    : `A correction needs a topic of labels, which this model does not read: models.${state.model}.labels in headrace.toml.`;
  all.problem.before(make("p", { className: "hint", textContent: mending, hidden: !publishes }));

  async function teach(name) {
    if (body === null) return all.problem.say("Draw, choose or type something first.");
    if (!name) return all.problem.say("Say what it is.");
    all.problem.say("");
    const [taught, before] = [body, answer];
    const type = taught.type || "text/plain; charset=utf-8";
    try {
      const url = `/topics/${encodeURIComponent(all.topic())}?${new URLSearchParams({ label: name })}`;
      const told = await (await posted(url, taught, type)).json();
      follow(taught, type, name, before, told);
    } catch (error) {
      all.problem.say(error.message);
    }
  }

  /** Lists a record, and says when a version has learned it and what that changed. */
  async function follow(taught, type, name, before, { records, after }) {
    const undo = button("Undo", () => correct(records[0].id));
    const said = all.add(await thumbOf(taught), name);
    said.textContent = `published at ${after.join(", ")}`;
    const answered = (after) =>
      patiently(
        async () => (await posted(path(state.model, route(state), { after }), taught, type)).json(),
        said,
        () => open,
      );
    const now = await answered(after);
    if (now === null) return;
    const was = before === null ? "" : `, was ${verdict(before)}`;
    said.textContent = `learned by version ${now.version}: ${verdict(now)}${was}`;
    if (state.labels) said.after(undo);

    /** To what it was taken for before; where that is the same, to what is written. */
    async function correct(id) {
      const label = before?.label && before.label !== name ? before.label : all.label.value.trim();
      if (!label || label === name) return all.problem.say("Say what it is, then undo.");
      all.problem.say("");
      try {
        const url = `/topics/${encodeURIComponent(state.labels)}`;
        const told = await (await posted(url, JSON.stringify({ id, label }), "application/json")).json();
        undo.remove();
        said.textContent = `corrected to ${label}, published at ${told.after.join(", ")}`;
        const then = await answered(told.after);
        if (then) said.textContent = `corrected to ${label} by version ${then.version}: ${verdict(then)}`;
      } catch (error) {
        all.problem.say(error.message);
      }
    }
  }

  function update(now) {
    all.update(now);
    asks.refresh();
  }

  update(state);
  return {
    node: all.node,
    update,
    close() {
      open = false;
      asks.close();
    },
  };
}

/** A model that draws: pictures are dropped, and its sheet takes them up. */
function feeding(state) {
  const sheet = make("img", { alt: "", className: "sheet" });
  const caption = make("p", { className: "hint" });
  let open = true;
  let shown = 0; // the version whose drawings are there

  const teach = async (_, files) => {
    if (!publishes) return all.problem.say(CLOSED);
    all.problem.say("");
    try {
      const label = all.label.value.trim() || undefined;
      const records = await Promise.all(files.map(async (file) => ({ ...(await encoded(file)), label })));
      const url = `/topics/${encodeURIComponent(all.topic())}`;
      const told = await (await posted(url, JSON.stringify({ records }), "application/json")).json();
      const many = files.length === 1 ? "1 picture" : `${files.length} pictures`;
      const said = all.add(await thumbOf(files[0]), label);
      said.textContent = `${many} published at ${told.after.join(", ")}`;
      const version = await patiently(
        () => drawn(told.after),
        said,
        () => open,
      );
      if (version) said.textContent = `${many} learned by version ${version}: the sheet shows it`;
    } catch (error) {
      all.problem.say(error.message);
    }
  };
  const pictures = picker(teach, "Choose pictures …", true);
  const hint = make("p", {
    className: "place hint",
    textContent: "Drop pictures here: it learns to draw such as these.",
  });
  hint.hidden = !publishes;
  const body = make("div", { className: "pair" }, make("div", { className: "controls" }, sheet, caption), hint);
  const say = (label) => [field("They are … (if they have a label)", label), pictures];
  const all = frame(state, droppable(body, teach), say);

  /** Draws the same codes by the newest version; returns its number. */
  async function drawn(after) {
    const reply = await ask(path(state.model, "generate", { n: Math.min(SHEET, MOST.samples), seed: 1, after }));
    const version = Number(reply.headers.get("X-Headrace-Version"));
    if (version < shown) return version;
    shown = version;
    sheet.src = await dataOf(await reply.blob());
    sheet.alt = `Drawn by version ${version} of ${state.model}`;
    caption.textContent = `The same codes, by version ${version}`;
    return version;
  }
  const refresh = newest(async () => {
    try {
      await drawn();
    } catch (error) {
      all.problem.say(error.message);
    }
  });

  function update(now) {
    all.update(now);
    refresh();
  }

  update(state);
  return {
    node: all.node,
    update,
    close() {
      open = false;
    },
  };
}

/** A model that writes: it is told a text, and goes on from its beginning. */
function telling(state) {
  const box = make("textarea", { rows: 5, disabled: !publishes });
  const text = make("p", { className: "text", attributes: { "aria-label": "How it goes on", role: "region" } });
  const caption = make("p", { className: "hint", textContent: "Once it has learned a text, it goes on from its beginning." });
  let open = true;

  const teach = async () => {
    const taught = box.value;
    if (!taught.trim()) return all.problem.say("Write something first.");
    all.problem.say("");
    try {
      const url = `/topics/${encodeURIComponent(all.topic())}`;
      const told = await (await posted(url, taught, "text/plain; charset=utf-8")).json();
      const said = all.add(await thumbOf(taught));
      said.textContent = `published at ${told.after.join(", ")}`;
      const wrote = await patiently(
        () => goesOn(taught, told.after),
        said,
        () => open,
      );
      if (wrote) said.textContent = `learned by version ${wrote.version}`;
    } catch (error) {
      all.problem.say(error.message);
    }
  };

  async function goesOn(taught, after) {
    const prompt = [...taught.trim()].slice(0, BEGINNING).join("");
    const how = { prompt, seed: 1, temperature: 0.5, max_bytes: GOES_ON, after };
    const wrote = await asked(path(state.model, "complete", how), { headers: { Accept: "application/json" } });
    text.replaceChildren(make("span", { className: "begun", textContent: prompt }), wrote.text);
    caption.textContent = `How version ${wrote.version} goes on`;
    return wrote;
  }

  const shown = make("div", { className: "controls" }, text, caption);
  const body = make("div", { className: "pair" }, make("div", { className: "controls" }, field("A text", box)), shown);
  const all = frame(state, body, () => [button("Teach", teach, { className: "primary" })]);
  all.update(state);
  return {
    node: all.node,
    update: all.update,
    close() {
      open = false;
    },
  };
}
