// The console. Everything that is shown is set as text, never as markup.
"use strict";

const EVENTS_SHOWN_MAX = 200;
const REFRESH_MS = 5000;
const RETRY_MS = 2000;
const at = (id) => document.getElementById(id);

let key = sessionStorage.getItem("bellbuoy.key") || "";
let reading = null; // Ends the stream that is being read.
let timer = 0;

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = String(text);
  if (kind) element.className = kind;
  return element;
}

function row(cells, buttons = []) {
  const line = make("tr");
  for (const cell of cells) {
    const [text, kind] = Array.isArray(cell) ? cell : [cell];
    line.append(make("td", text, kind));
  }
  const last = make("td");
  last.append(...buttons);
  line.append(last);
  return line;
}

function button(text, act) {
  const element = make("button", text);
  element.type = "button";
  element.addEventListener("click", async () => {
    element.disabled = true;
    await act();
    element.disabled = false;
    refresh();
  });
  return element;
}

function say(text) {
  at("said").textContent = text;
  setTimeout(() => { if (at("said").textContent === text) at("said").textContent = ""; }, 6000);
}

async function call(method, path, body) {
  const options = { method, headers: { Authorization: `Bearer ${key}` } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail || `${answer.status}`);
  return content;
}

async function change(method, path, body) {
  try {
    await call(method, path, body);
  } catch (error) {
    say(error.message);
  }
}

const KIND = { healthy: "good", closed: "good", degraded: "warn", half_open: "warn", unhealthy: "bad", open: "bad", isolated: "bad" };
const BREAKER = { ledger: "mongodb", queue: "rabbitmq", cache: "redis" };

function showHealth(health) {
  at("status").textContent = health.status;
  at("status").className = `pill ${KIND[health.status] || ""}`;
  at("modes").textContent = health.modes.length ? `modes: ${health.modes.join(", ")}` : "";
  const lines = Object.entries(health.dependencies).map(([name, one]) => {
    const breaker = `/v1/breakers/${BREAKER[name] || name}`;
    const buttons = one.breaker === null ? [] : [
      one.breaker === "isolated"
        ? button("Close", () => change("POST", breaker, { action: "close" }))
        : button("Isolate", () => change("POST", breaker, { action: "isolate" })),
    ];
    return row([name, [one.status, KIND[one.status]], [one.breaker || "none", KIND[one.breaker] || "faint"]], buttons);
  });
  at("dependencies").replaceChildren(...lines);
  const issues = health.issues.length ? health.issues.map((one) => make("li", one, "warn")) : [make("li", "none", "faint")];
  at("issues").replaceChildren(...issues);
}

function showEvent(name, data) {
  const { at: when, ...fields } = data;
  const line = make("li");
  line.append(
    make("span", (when || "").slice(11, 19), "faint"),
    make("span", name),
    make("span", Object.entries(fields).map(([field, value]) => `${field}=${JSON.stringify(value)}`).join(" "), "faint"),
  );
  at("events").prepend(line);
  while (at("events").childElementCount > EVENTS_SHOWN_MAX) at("events").lastElementChild.remove();
}

const SECTIONS = {
  async books() {
    const books = await call("GET", "/v1/audit");
    const lines = Object.entries(books).filter(([, value]) => typeof value === "number");
    at("books").replaceChildren(...lines.map(([name, value]) => {
      const wrong = name === "difference" && value !== 0;
      return row([name.replaceAll("_", " "), [value, wrong ? "bad" : ""]]);
    }));
  },
  async incidents() {
    const { items } = await call("GET", "/v1/incidents?limit=20");
    at("incidents").replaceChildren(...items.map((one) => row(
      [one.opened_at.slice(0, 19).replace("T", " "), `${one.issue} ${one.component}`, [one.status, one.status === "resolved" ? "good" : "warn"]],
      one.status === "resolved" ? [] : [
        button("Acknowledge", () => change("POST", `/v1/incidents/${one.id}/acknowledge`)),
        button("Resolve", () => change("POST", `/v1/incidents/${one.id}/resolve`)),
      ],
    )));
  },
  async letters() {
    const { items } = await call("GET", "/v1/dead-letters?limit=20");
    at("letters").replaceChildren(...items.map((one) => row(
      [one.provider, one.error_code, one.notification_id],
      [
        button("Explain", () => explain(one.notification_id)),
        button("Replay", () => change("POST", `/v1/dead-letters/${encodeURIComponent(one.id)}/replay`)),
      ],
    )));
  },
  async flags() {
    const { items } = await call("GET", "/v1/flags");
    at("flags").replaceChildren(...items.map((one) => row(
      [one.name, [one.enabled ? "on" : "off", one.enabled ? "good" : "faint"]],
      [button(one.enabled ? "Switch off" : "Switch on", () => change("PUT", `/v1/flags/${one.name}`, { enabled: !one.enabled }))],
    )));
  },
};

async function refresh() {
  clearTimeout(timer);
  // One that fails, because its store is away, leaves the others and what it last showed.
  await Promise.allSettled(Object.values(SECTIONS).map((show) => show()));
  if (reading) timer = setTimeout(refresh, REFRESH_MS);
}

async function explain(id) {
  at("which").value = id;
  try {
    const told = await call("GET", `/v1/notifications/${encodeURIComponent(id)}/explain`);
    const lines = told.timeline.map((one) => make("li", `${one.at.slice(11, 19)} ${one.event}: ${one.detail}`));
    if (told.next) lines.push(make("li", `next, at ${(told.next.at || "no set time").slice(0, 19)}: ${told.next.what}, because ${told.next.why}`, "warn"));
    at("story").replaceChildren(...lines);
  } catch (error) {
    at("story").replaceChildren(make("li", error.message, "bad"));
  }
}

function take(text) {
  let name = "message";
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (!data) return;
  if (name === "health") showHealth(JSON.parse(data));
  else showEvent(name, JSON.parse(data));
}

async function follow(signal) {
  const answer = await fetch("/v1/events", { headers: { Authorization: `Bearer ${key}` }, signal });
  if (answer.status === 401 || answer.status === 403) {
    leave(`${(await answer.json()).detail}`);
    return;
  }
  if (!answer.ok) throw new Error(`${answer.status}`);
  at("enter").hidden = true;
  at("shown").hidden = at("leave").hidden = false;
  sessionStorage.setItem("bellbuoy.key", key);
  refresh();
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    parts.forEach(take);
  }
}

async function connect() {
  const mine = reading = new AbortController();
  while (reading === mine) {
    try {
      await follow(mine.signal);
    } catch {
      // The service is away or starting; the next try may meet it.
    }
    if (reading !== mine) return;
    at("status").textContent = "not connected";
    at("status").className = "pill bad";
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

function leave(why) {
  if (reading) reading.abort();
  reading = null;
  key = "";
  sessionStorage.removeItem("bellbuoy.key");
  at("shown").hidden = at("leave").hidden = true;
  at("enter").hidden = false;
  at("refused").textContent = why || "";
  at("status").textContent = "not connected";
  at("status").className = "pill";
}

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  at("refused").textContent = "";
  connect();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(at("which").value.trim());
});
at("leave").addEventListener("click", () => leave());
if (key) connect();
