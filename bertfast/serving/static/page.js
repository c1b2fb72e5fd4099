// The page: what a model makes of a text of one's own. Every text goes into the document as text,
// never as markup, and nothing is asked of any other host.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const AT_ONCE = 64; // rows of a file in a request
const HUES = 6;
let models = [], model = null, tab = null, running = null;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// What the server is asked

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const options = body === undefined ? { headers, signal }
    : { method: "POST", headers, signal, body: JSON.stringify({ ...body, model: model.name }) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  if (answer.status === 401) $("key-field").hidden = false;
  if (answer.status === 429 && body !== undefined) {
    await new Promise((wake) => setTimeout(wake, 1000 * (answer.headers.get("Retry-After") || 1)));
    if (!signal?.aborted) return ask(path, body, signal);
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message || said.error || `the server said ${answer.status}`);
  }
  return answer.json();
}

async function run(work) {
  running?.abort();
  const own = running = new AbortController();
  $("status").textContent = "…";
  $("status").className = "";
  const started = performance.now();
  try {
    const shown = await work(own.signal);
    if (own !== running) return;
    $("result").replaceChildren(...shown);
    $("status").textContent = `${Math.round(performance.now() - started)} ms`;
  } catch (error) {
    if (own !== running) return;
    $("status").textContent = error.name === "AbortError" ? "stopped" : error.message;
    $("status").className = "error";
  }
}

// Parts of a view

function area(label, name, { low = false, value = "" } = {}) {
  const field = el("textarea", { id: name, class: low ? "low" : "", spellcheck: "false" });
  field.value = value;
  return el("div", { class: "field" }, el("label", { for: name }, label), field);
}

function form(work, label, ...fields) {
  const go = el("button", { type: "submit", class: "main" }, label);
  const made = el("form", {
    onsubmit: (event) => { event.preventDefault(); run(work); },
    onkeydown: (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        run(work);
      }
    },
  }, ...fields, el("div", { class: "row" }, go, el("small", {}, "Ctrl+Enter")));
  return [made];
}

const text = (id) => $(id).value;
const lines = (id) => text(id).split("\n").map((line) => line.trim()).filter(Boolean);
const percent = (value) => value.toFixed(3);

function bars(rows, { pressed = null, choose = null, most = 1 } = {}) {
  const made = el("div", { class: "bars" });
  for (const { label, score } of rows) {
    const name = choose
      ? el("button", { type: "button", class: "name", "aria-pressed": String(label === pressed),
          onclick: () => choose(label) }, label)
      : el("span", { class: "name" }, label);
    const part = Math.max(0, Math.min(1, Math.abs(score) / most));
    const bar = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 10, rx: 2 }),
      svg("rect", { class: "bar", width: 100 * part, height: 10, rx: 2 }));
    made.append(name, bar, el("span", { class: "value" }, percent(score)));
  }
  return made;
}

// A text in which some spans are marked: {start, end, class, title, label}, in characters.
function marked(source, spans) {
  const points = Array.from(source); // Python's characters, not JavaScript's halves
  const made = el("div", { class: "text" });
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;
    made.append(points.slice(at, span.start).join(""));
    const mark = el("mark", { class: span.class, title: span.title },
      points.slice(span.start, span.end).join(""));
    if (span.label) mark.append(el("sup", {}, span.label));
    made.append(mark);
    at = span.end;
  }
  made.append(points.slice(at).join(""));
  return made;
}

const strength = (part) => (part > 2 / 3 ? 3 : part > 1 / 3 ? 2 : 1);

function attributions(texts, words, label) {
  const effects = words.flat().map((word) => Math.abs(word.effect[label]));
  const most = Math.max(...effects, 1e-9);
  return texts.map((source, place) => marked(source, words[place].map((word) => {
    const value = word.effect[label];
    const part = Math.abs(value) / most;
    const side = value >= 0 ? "for" : "against";
    return { start: word.start, end: word.end, title: `${value >= 0 ? "+" : ""}${value.toFixed(4)}`,
      class: part > 0.05 ? `${side}-${strength(part)}` : "none" };
  })));
}

function table(heads, rows) {
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) =>
      el("tr", {}, ...row.map((cell) => el("td", {}, cell)))))));
}

const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);

// The first two principal components of vectors, each by power iteration.
function principal(vectors) {
  const count = vectors.length, width = vectors[0].length;
  const mean = Array.from({ length: width }, (_, n) => vectors.reduce((s, v) => s + v[n], 0) / count);
  const rest = vectors.map((vector) => vector.map((value, n) => value - mean[n]));
  const found = [];
  for (let component = 0; component < 2; component++) {
    let axis = Array.from({ length: width }, (_, n) => Math.sin(n + 1 + component));
    for (let turn = 0; turn < 60; turn++) {
      const scores = rest.map((vector) => dot(vector, axis));
      const next = new Array(width).fill(0);
      rest.forEach((vector, row) => vector.forEach((v, n) => { next[n] += scores[row] * v; }));
      const length = Math.hypot(...next);
      if (length < 1e-12) break;
      axis = next.map((value) => value / length);
    }
    const scores = rest.map((vector) => dot(vector, axis));
    rest.forEach((vector, row) => vector.forEach((_, n) => { vector[n] -= scores[row] * axis[n]; }));
    found.push(scores);
  }
  return found[0].map((x, row) => [x, found[1][row]]);
}

function map(names, places, query) {
  const [width, height, edge] = [640, 360, 30];
  const fit = (axis, size) => {
    const values = places.map((place) => place[axis]);
    const low = Math.min(...values), span = Math.max(...values) - low || 1;
    return values.map((value) => edge + ((value - low) / span) * (size - 2 * edge));
  };
  const xs = fit(0, width), ys = fit(1, height);
  const made = svg("svg", { class: "map", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Map of the vectors: their first two principal components" });
  names.forEach((name, row) => {
    const short = name.length > 34 ? `${name.slice(0, 33)}…` : name;
    const right = xs[row] > width * 0.62;
    made.append(svg("g", row === query ? { class: "query" } : {},
      svg("title", {}, name),
      svg("circle", { cx: xs[row], cy: ys[row], r: 5 }),
      svg("text", { x: xs[row] + (right ? -9 : 9), y: ys[row] + 4,
        "text-anchor": right ? "end" : "start" }, short)));
  });
  return made;
}

// The views, by what a model is for

const classify = {
  name: "Classify",
  show: () => form(async (signal) => {
    const texts = text("second").trim() ? [text("first"), text("second")] : [text("first")];
    const inputs = texts.length === 1 ? texts[0] : texts;
    const found = await ask("explain", { inputs }, signal);
    const rows = Object.entries(found.values).map(([label, score]) => ({ label, score }))
      .sort((a, b) => b.score - a.score);
    const most = model.task === "regression" ? Math.max(1, ...rows.map((r) => Math.abs(r.score))) : 1;
    const draw = (label) => [
      el("h2", {}, model.task === "regression" ? "Score" : "Probabilities"),
      bars(rows, { most, pressed: label, choose: rows.length > 1 ? (other) => {
        $("result").replaceChildren(...draw(other));
        $("result").querySelector('[aria-pressed="true"]')?.focus();
      } : null }),
      el("h2", {}, rows.length > 1 ? `Words for and against ${label}` : "Words that raise and lower it"),
      ...attributions(texts, found.words, label),
      el("small", {}, "Green words raise it, red ones, with dots below, lower it: what changes when "
        + "the word is left out. Point at a word for its number."),
    ];
    return draw(rows[0].label);
  }, "Classify", area("Text", "first"), area("Second text, of a pair (optional)", "second", { low: true })),
};

const rank = {
  name: "Rank",
  show: () => form(async (signal) => {
    const texts = lines("lines");
    const found = await ask("rerank", { query: text("query"), texts }, signal);
    return [el("h2", {}, "Best first"),
      bars(found.map(({ index, score }) => ({ label: texts[index], score })))];
  }, "Rank", area("Query", "query", { low: true }), area("Texts, one a line", "lines")),
};

const tag = {
  name: "Tag",
  show: () => form(async (signal) => {
    const source = text("first");
    const [found] = await ask("entities", { inputs: source }, signal);
    if (!found.entities) {
      return [el("h2", {}, "Tags"), table(["word", "tag"],
        found.words.map((word, place) => [word, found.tags[place]]))];
    }
    const kinds = [...new Set(found.entities.map((one) => one.label))];
    const made = marked(source, found.entities.map((one) => ({ start: one.start, end: one.end,
      label: one.label, title: percent(one.score), class: `hue-${kinds.indexOf(one.label) % HUES}` })));
    const rows = found.entities.map((one) => [one.text, one.label, percent(one.score)]);
    return [el("h2", {}, "Entities"), made,
      ...(rows.length ? [table(["text", "label", "score"], rows)] : [el("p", {}, "None was found.")])];
  }, "Find", area("Text", "first")),
};

const answer = {
  name: "Answer",
  show: () => form(async (signal) => {
    const context = text("context");
    const [found] = await ask("answers", { inputs: { question: text("question"), context } }, signal);
    const spans = found.start === null ? [] : [{ start: found.start, end: found.end, class: "hue-2" }];
    return [el("h2", {}, found.answer || "No answer"),
      marked(context, spans), el("h2", {}, "Likeliest"),
      bars(found.n_best.map((one) => ({ label: one.answer || "(no answer)", score: one.score })))];
  }, "Answer", area("Question", "question", { low: true }), area("Context", "context")),
};

const fill = {
  name: "Fill",
  show: () => form(async (signal) => {
    const [masks] = await ask("fill", { inputs: text("first"), top: 8 }, signal);
    return masks.flatMap((words, place) => [
      el("h2", {}, masks.length > 1 ? `Mask ${place + 1}` : "Likeliest words"),
      bars(words.map((one) => ({ label: one.word, score: one.probability }))),
      el("p", { class: "text" }, words[0].text)]);
  }, "Fill", area("Text with [MASK] where a word is to go", "first")),
};

const choose = {
  name: "Choose",
  show: () => form(async (signal) => {
    const choices = lines("choices");
    const found = await ask("choose", { text: text("first"), choices }, signal);
    return [el("h2", {}, found.choice), bars(choices.map((label, place) => (
      { label, score: found.probabilities[place] })))];
  }, "Choose", area("Question or context", "first"), area("Choices, one a line", "choices")),
};

const compare = {
  name: "Compare",
  show: () => form(async (signal) => {
    const inputs = { source_sentence: text("first"), sentences: [text("second")] };
    const [score] = await ask("similarity", { inputs }, signal);
    return [el("h2", {}, "Cosine similarity"), bars([{ label: "similarity", score }])];
  }, "Compare", area("Text", "first"), area("Another", "second")),
};

const search = {
  name: "Search",
  show: () => form(async (signal) => {
    const texts = lines("lines"), query = text("query").trim();
    if (!texts.length) throw new Error("Paste some lines to search in.");
    const all = query ? [...texts, query] : texts;
    const vectors = [];
    for (let start = 0; start < all.length; start += AT_ONCE) {
      vectors.push(...await ask("embed", { inputs: all.slice(start, start + AT_ONCE) }, signal));
    }
    const made = [];
    if (query) {
      const scores = texts.map((label, row) => ({ label, score: dot(vectors[row], vectors.at(-1)) }));
      made.push(el("h2", {}, "Nearest lines"),
        bars(scores.sort((a, b) => b.score - a.score).slice(0, 10)));
    }
    if (all.length > 2) {
      made.push(el("h2", {}, "Map"), map(all, principal(vectors), query ? texts.length : -1),
        el("small", {}, "The vectors' first two principal components"
          + (query ? "; the query is the red one." : ".")));
    }
    return made;
  }, "Search", area("Query", "query", { low: true }), area("Lines to search in", "lines")),
};

// Files

function records(name, content) {
  const ending = name.toLowerCase().split(".").pop();
  if (ending === "jsonl" || ending === "ndjson" || ending === "json") {
    const body = content.trim();
    const rows = body.startsWith("[") ? JSON.parse(body)
      : body.split("\n").filter((line) => line.trim()).map((line, place) => {
        try {
          return JSON.parse(line);
        } catch {
          throw new Error(`line ${place + 1} of ${name} is no JSON`);
        }
      });
    return rows.map((row) => (row !== null && typeof row === "object" ? row : { text: String(row) }));
  }
  if (ending === "csv" || ending === "tsv") {
    const [head, ...rows] = cells(content, ending === "csv" ? "," : "\t", ending === "csv");
    if (!head) throw new Error(`${name} is empty`);
    return rows.map((row) => Object.fromEntries(head.map((column, place) => [column, row[place] ?? ""])));
  }
  const all = content.replace(/\r\n?/g, "\n").split("\n");
  if (all.at(-1) === "") all.pop();
  return all.map((line) => ({ text: line }));
}

function cells(content, between, quoted) {
  const rows = [];
  let row = [], cell = "", inside = false;
  for (let place = 0; place < content.length; place++) {
    const sign = content[place];
    if (inside) {
      if (sign !== '"') cell += sign;
      else if (content[place + 1] === '"') { cell += '"'; place++; } else inside = false;
    } else if (quoted && sign === '"' && cell === "") inside = true;
    else if (sign === between) { row.push(cell); cell = ""; }
    else if (sign === "\n" || sign === "\r") {
      if (sign === "\r" && content[place + 1] === "\n") place++;
      row.push(cell);
      if (row.length > 1 || cell !== "") rows.push(row);
      row = []; cell = "";
    } else cell += sign;
  }
  if (cell !== "" || row.length) rows.push([...row, cell]);
  return rows;
}

const usual = (names, columns) => names.find((name) => columns.includes(name));
const string = (value) => (typeof value === "string" ? value : value == null ? "" : String(value));

// What a kind of model asks of rows: the columns by their usual names, and the answers in order.
function asking(columns) {
  const first = usual(["text", "sentence", "sentence1", "question", "premise"], columns) ?? columns[0];
  const second = usual(["sentence2", "pair", "hypothesis", "text2"], columns);
  const one = (row) => string(row[first]);
  if (model.task === "embedding") {
    return [[first], async (rows, signal) => (await ask("embed", { inputs: rows.map(one) }, signal))
      .map((vector) => ({ vector }))];
  }
  if (model.task === "token-classification") {
    return [[first], (rows, signal) => ask("entities", { inputs: rows.map(one) }, signal)];
  }
  if (model.task === "fill") {
    return [[first], async (rows, signal) => (await ask("fill", { inputs: rows.map(one) }, signal))
      .map((masks) => ({ masks }))];
  }
  if (model.task === "question-answering") {
    const asked = usual(["question", "query"], columns), context = usual(["context", "passage"], columns);
    if (!asked || !context) throw new Error("A file of columns question and context is wanted.");
    return [[asked, context], (rows, signal) => ask("answers", { inputs: rows.map((row) => (
      { question: string(row[asked]), context: string(row[context]) })) }, signal)];
  }
  if (model.task === "multiple-choice") {
    if (!columns.includes("choices")) throw new Error("JSON lines of text and choices are wanted.");
    return [[first, "choices"], (rows, signal) => Promise.all(rows.map((row) => (
      ask("choose", { text: one(row), choices: row.choices }, signal))))];
  }
  const inputs = (row) => (second ? [one(row), string(row[second])] : [one(row)]);
  return [second ? [first, second] : [first], async (rows, signal) => (
    await ask("predict", { inputs: rows.map(inputs) }, signal)).map((labels) => (
    { label: labels[0].label, score: labels[0].score,
      probabilities: Object.fromEntries(labels.map((l) => [l.label, l.score])) }))];
}

function download(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function csv(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value) => {
    const said = typeof value === "object" && value !== null ? JSON.stringify(value) : string(value);
    return /[",\r\n]/.test(said) ? `"${said.replaceAll('"', '""')}"` : said;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))]
    .map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

const files = {
  name: "File",
  show: () => {
    const input = el("input", { type: "file", id: "file", accept: ".txt,.csv,.tsv,.json,.jsonl,.ndjson" });
    const area = el("div", { class: "drop" },
      el("label", { for: "file" }, "Drop a file here, or choose one: "), input,
      el("p", { class: "faint" }, "Plain text, a text a line; CSV, TSV or JSON lines with a column "
        + "text. It goes to this server alone."));
    const take = (file) => file && run((signal) => whole(file, signal));
    input.addEventListener("change", () => take(input.files[0]));
    area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      area.classList.remove("over");
      take(event.dataTransfer.files[0]);
    });
    return [area];
  },
};

async function whole(file, signal) {
  const rows = records(file.name, await file.text());
  if (!rows.length) throw new Error(`${file.name} has no rows`);
  const [columns, answers] = asking(Object.keys(rows[0]));
  const bar = el("progress", { max: rows.length, value: 0, "aria-label": "Rows done" });
  const stop = el("button", { type: "button", onclick: () => running.abort() }, "Stop");
  $("result").replaceChildren(bar, stop);
  const made = [];
  for (let start = 0; start < rows.length; start += AT_ONCE) {
    const some = rows.slice(start, start + AT_ONCE);
    const found = await answers(some, signal);
    some.forEach((row, place) => made.push({ ...row, ...found[place] }));
    bar.value = made.length;
  }
  const stem = file.name.replace(/\.[^.]*$/, "");
  const shown = made.slice(0, 20).map((row) => [
    columns.map((column) => string(row[column])).join(" | "), brief(row)]);
  return [
    el("h2", {}, `${made.length} row${made.length === 1 ? "" : "s"}`),
    el("div", { class: "row" },
      el("button", { type: "button", class: "main", id: "save-jsonl", onclick: () => download(`${stem}.predictions.jsonl`,
        made.map((row) => `${JSON.stringify(row)}\n`).join(""), "application/jsonl") }, "Download JSON lines"),
      el("button", { type: "button", id: "save-csv", onclick: () => download(`${stem}.predictions.csv`,
        csv(made), "text/csv") }, "Download CSV")),
    table([columns.join(" | "), "result"], shown),
    ...(made.length > 20 ? [el("small", {}, "The first 20 rows are shown.")] : [])];
}

function brief(row) {
  if (row.vector) return `${row.vector.length} numbers`;
  if (row.entities) return row.entities.map((one) => `${one.text} [${one.label}]`).join(", ") || "none";
  if (row.tags && row.words) return row.tags.join(" ");
  if (row.masks) return row.masks.map((words) => words[0].word).join(" | ");
  if (row.n_best) return row.answer || "(no answer)";
  if (row.choice !== undefined) return row.choice;
  return `${row.label} ${percent(row.score)}`;
}

const VIEWS = {
  embedding: [compare, search, files],
  fill: [fill, files],
  "token-classification": [tag, files],
  "question-answering": [answer, files],
  "multiple-choice": [choose, files],
};

function views() {
  if (VIEWS[model.task]) return VIEWS[model.task];
  if (!model.classifies) return [];
  return model.reranks ? [classify, rank, files] : [classify, files];
}

function open(view) {
  running?.abort();
  running = null;
  tab = view;
  for (const button of $("tabs").children) {
    const own = button.textContent === view.name;
    button.setAttribute("aria-selected", String(own));
    button.tabIndex = own ? 0 : -1;
  }
  $("panel").replaceChildren(...view.show());
  $("result").replaceChildren();
  $("status").textContent = "";
}

function choosing(name) {
  model = models.find((one) => one.name === name);
  const labels = model.labels ? `, ${model.labels.length} labels` : "";
  $("about").textContent = `${model.task}${labels}, inputs of up to ${model.max_input_length} tokens`;
  const found = views();
  $("tabs").replaceChildren(...found.map((view) => el("button", { type: "button", role: "tab",
    "aria-controls": "panel", onclick: () => open(view) }, view.name)));
  $("tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    open(found[(found.indexOf(tab) + step + found.length) % found.length]);
    $("tabs").querySelector('[aria-selected="true"]').focus();
  };
  if (found.length) open(found[0]);
  else $("panel").replaceChildren("The page shows no model of this kind; the API serves it.");
}

async function begin() {
  try {
    models = (await ask("info")).models;
  } catch (error) {
    $("status").textContent = error.message;
    $("status").className = "error";
    return;
  }
  $("status").textContent = "";
  $("model").replaceChildren(...models.map((one) => el("option", { value: one.name }, one.name)));
  choosing(models[0].name);
}

$("model").addEventListener("change", () => choosing($("model").value));
$("key").addEventListener("change", begin);
$("theme").addEventListener("click", () => {
  const root = document.documentElement.classList;
  const dark = root.contains("dark")
    || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
  root.toggle("dark", !dark);
  root.toggle("light", dark);
});
begin();
