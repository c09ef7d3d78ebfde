// SPDX-License-Identifier: Apache-2.0
// Chat with the server that sent this page, and see where each token came from.
//
// A chunk of the stream is what one step of the engine yielded: tokens that were drafted and accepted, then one from the
// main model. The engine's own statistics close the stream; where the chunks disagree with them (a slow reader gets
// several steps in one chunk), the page says that its colours are approximate.

const SKIPPED = 8; // characters that tokens which are parts of characters may amount to

const $ = (id) => document.getElementById(id);
const lanes = { with: lane($("with")), without: lane($("without")) };
let conversation = [];
let running = null;
let model = null;

function lane(element) {
  return { element, log: element.querySelector(".log"), figures: element.querySelector(".figures") };
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- requests

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem(response) {
  const body = await response.json().catch(() => ({}));
  const said = body?.error?.message ?? `The server answered ${response.status}.`;
  return response.status === 401 ? `${said} Type an API key below.` : said;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") continue; // the server closes the stream
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function answer(where, messages, speculate, signal) {
  const shown = new Answer(where);
  const request = {
    model, messages, stream: true, stream_options: { include_usage: true }, logprobs: true,
    temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
    ...(speculate ? {} : { vllm_xargs: { speculation: "off" } }),
  };
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal });
    if (!response.ok) throw new Error(await problem(response));
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message ?? "The server broke the answer off.");
      shown.take(chunk);
    }
  } finally {
    shown.end();
  }
  return shown.content;
}

// ---- one answer on the page

class Answer {
  constructor(where) {
    this.where = where;
    this.message = make("div", "message");
    this.message.append(make("span", "who", "model"));
    where.log.append(this.message);
    this.part = null;
    this.content = "";
    this.steps = []; // tokens of each step after the first token, which comes from the prompt
    this.tokens = 0;
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.statistics = null;
  }

  take(chunk) {
    this.statistics = chunk.metrics?.speculative_decoding ?? this.statistics;
    const choice = chunk.choices?.[0];
    const tokens = choice?.logprobs?.content?.map((token) => token.token) ?? [];
    const prompted = this.first === null;
    if (tokens.length) {
      this.last = performance.now();
      if (prompted) this.first = this.last;
      else this.steps.push(tokens.length);
      this.tokens += tokens.length;
    }
    const left = { thought: choice?.delta?.reasoning ?? "", said: choice?.delta?.content ?? "" };
    this.content += left.said;
    tokens.forEach((token, index) => {
      // Thinking comes first. A token found in neither is a marker, which the server cuts out, or part of a character,
      // whose other parts come with its neighbours: text before the next token that is found is shown with that one.
      const kind = ["thought", "said"].find((one) => token && left[one].slice(0, token.length + SKIPPED).includes(token));
      if (!kind) return;
      const end = left[kind].indexOf(token) + token.length;
      this.show(kind, left[kind].slice(0, end), index < tokens.length - 1 && !prompted ? "drafted" : "main");
      left[kind] = left[kind].slice(end);
    });
    for (const kind of ["thought", "said"]) if (left[kind]) this.show(kind, left[kind], "main");
    this.tell();
  }

  show(kind, text, origin) {
    const { log } = this.where;
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (!text.trim() && this.part?.className !== kind) return; // the empty lines around thinking
    if (this.part?.className !== kind) {
      this.part = make("div", kind);
      this.message.append(this.part);
    }
    this.part.append(make("span", `token ${origin}`, text));
    if (follow) log.scrollTop = log.scrollHeight;
  }

  get rate() {
    // From the question on: of a short answer all chunks can arrive together.
    return this.tokens > 1 ? (1000 * this.tokens) / (this.last - this.began) : null;
  }

  tell() {
    const { figures } = this.where;
    const said = [`${this.tokens} tokens`];
    if (this.rate) said.push(`${this.rate.toFixed(1)} tokens/s`);
    if (this.first) said.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    const length = this.statistics?.mean_acceptance_length ?? mean(this.steps);
    if (length) said.push(`acceptance length ${length.toFixed(2)}`);
    figures.replaceChildren(make("p", "", said.join(" · ")));
  }

  end() {
    this.tell();
    const histogram = this.statistics?.acceptance_histogram;
    if (this.where !== lanes.with) return;
    $("exactness").textContent = "";
    if (!histogram || !this.statistics.num_draft_tokens) return;
    this.where.figures.append(bars(histogram));
    if (!agrees(this.steps, histogram)) $("exactness").textContent = "Colours are approximate: some steps arrived together.";
  }
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// The last step may have been cut by the end of the answer: the engine counts what it accepted, the stream what it sent.
function agrees(steps, histogram) {
  const counted = histogram.map(() => 0);
  for (const tokens of steps) if (tokens - 1 < counted.length) counted[tokens - 1] += 1;
  return counted.reduce((sum, count, index) => sum + Math.abs(count - histogram[index]), 0) <= 2;
}

function bars(histogram) {
  const box = make("div", "bars");
  const most = Math.max(...histogram, 1);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", `Steps by accepted tokens: ${histogram.map((count, accepted) => `${accepted}: ${count}`).join(", ")}`);
  histogram.forEach((count, accepted) => {
    const bar = make("progress");
    bar.max = most;
    bar.value = count;
    box.append(make("span", "", `${accepted} accepted`), bar, make("span", "", String(count)));
  });
  return box;
}

// ---- the form

function said(where, text) {
  const message = make("div", "message");
  message.append(make("span", "who", "you"), make("div", "said", text));
  where.log.append(message);
  where.log.scrollTop = where.log.scrollHeight;
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function send(event) {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (running || !text) return;
  fail("");
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  const compare = $("compare").checked;
  const asked = [...conversation, { role: "user", content: text }];
  $("prompt").value = "";
  said(lanes.with, text);
  if (compare) said(lanes.without, text);
  try {
    if (!model) await findModel();
    const content = await answer(lanes.with, asked, true, running.signal);
    conversation = [...asked, { role: "assistant", content }];
    // One after the other: at the same time each would slow the other down.
    if (compare) await answer(lanes.without, asked, false, running.signal);
  } catch (error) {
    if (error.name !== "AbortError") {
      fail(error.message);
      if (!$("prompt").value) $("prompt").value = text;
    }
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    $("prompt").focus();
  }
}

function restart() {
  running?.abort();
  conversation = [];
  for (const one of Object.values(lanes)) {
    one.log.replaceChildren();
    one.figures.replaceChildren();
  }
  fail("");
  $("prompt").focus();
}

// ---- the server's state

async function findModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await problem(response));
  model = (await response.json()).data[0].id;
}

function facts(status) {
  const known = [
    ["model", status.model], ["K", status.draft ? status.draft_tokens : null],
    ["acceptance length", status.acceptance.mean_acceptance_length?.toFixed(2)],
    ["running", status.queue.running], ["waiting", status.queue.waiting],
  ].filter(([, value]) => value !== null && value !== undefined);
  $("facts").replaceChildren(...known.map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", String(value)));
    return pair;
  }));
}

async function watch() {
  let ready = false;
  try {
    const state = await (await fetch("/readyz")).json();
    ready = state.status === "ready";
    $("state").textContent = ready || state.stage === state.status ? state.status : `${state.status}: ${state.stage}`;
    $("state").className = state.status;
    if (ready) {
      const response = await fetch("/aerie/status", { headers: headers() });
      if (response.ok) facts(await response.json());
    }
  } catch {
    $("state").textContent = "the server does not answer";
    $("state").className = "failed";
  }
  setTimeout(watch, ready ? 3000 : 1000);
}

$("ask").addEventListener("submit", send);
$("again").addEventListener("click", restart);
$("stop").addEventListener("click", () => running?.abort());
$("compare").addEventListener("change", () => { $("without").hidden = !$("compare").checked; });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => sessionStorage.setItem("key", $("key").value.trim()));
watch();
