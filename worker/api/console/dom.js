// Elements, messages and dialogs. Text is always set as text, never as HTML.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function say(text, kind = "") {
  const line = h("div", { class: kind }, text);
  document.getElementById("said").append(line);
  setTimeout(() => line.remove(), 8000);
}

// A question in a dialog; answers true or false. The dangerous button is never the one that has the focus.
export function ask(title, text, yes) {
  const dialog = document.getElementById("ask");
  return new Promise((answer) => {
    const close = (value) => { dialog.close(); answer(value); };
    dialog.className = "";
    dialog.replaceChildren(
      h("h2", {}, title),
      h("p", {}, text),
      h("div", { class: "row end" },
        h("button", { type: "button", class: "quiet", autofocus: true, onclick: () => close(false) }, "Keep it"),
        h("button", { type: "button", class: "danger", onclick: () => close(true) }, yes)),
    );
    dialog.oncancel = () => answer(false);
    dialog.showModal();
  });
}

export function showPage(title, html) {
  const dialog = document.getElementById("ask");
  dialog.className = "wide";
  const frame = h("iframe", { title, sandbox: "", srcdoc: html });
  dialog.replaceChildren(
    h("div", { class: "row" }, h("h2", { class: "grow" }, title),
      h("button", { type: "button", class: "quiet", autofocus: true, onclick: () => dialog.close() }, "Close")),
    frame,
  );
  dialog.oncancel = null;
  dialog.showModal();
}

export function duration(seconds) {
  if (seconds == null) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${seconds < 10 ? seconds.toFixed(1) : whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(0)} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(1)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

export const moment = (text) => (text ? new Date(text).toLocaleString() : "–");
export const percent = (rate) => (rate == null ? "–" : `${(rate * 100).toFixed(1)} %`);

const NAMES = { 1: "Not running", 2: "Waiting", 3: "Running", 4: "Finished", 5: "Failed" };
export const statusName = (status) => NAMES[status] ?? "No run yet";
export const statusTag = (status) => h("span", { class: `tag s${status ?? 1}` }, statusName(status));

// One line of a table; narrow screens show the column's name before each cell.
export function cells(names, values) {
  return h("tr", {}, values.map((value, at) => {
    const number = value instanceof Node ? false : typeof value === "object" && value?.n !== undefined;
    return h("td", { "data-name": names[at], class: number ? "n" : null }, number ? value.n : value);
  }));
}

export function table(names, rows) {
  return h("table", { class: "stack" },
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => cells(names, row))));
}

export function pager(offset, limit, total, go) {
  if (total <= limit && offset === 0) return null;
  const last = Math.min(offset + limit, total);
  return h("nav", { class: "row", "aria-label": "Pages" },
    h("button", { type: "button", class: "quiet", disabled: offset === 0, onclick: () => go(Math.max(0, offset - limit)) }, "Earlier"),
    h("span", { class: "dim" }, total ? `${Math.min(offset + 1, total)} to ${last} of ${total}` : "none"),
    h("button", { type: "button", class: "quiet", disabled: last >= total, onclick: () => go(offset + limit) }, "Later"));
}
