// The newest run of a model, as it goes.

import { getText, get, send } from "./api.js";
import { ask, duration, h, moment, percent, say, showPage, statusName, svg, table } from "./dom.js";

const PHASES = { load: "Loading the data", prepare: "Checking every recording", train: "Training", evaluate: "Measuring on the test recordings", publish: "Publishing" };
const GATES = {
  published: "The new model makes fewer errors. It is in use.",
  no_improvement: "The new model is not provably better, so the one in use stays.",
  forgets: "The new model understands ordinary speech worse, so the one in use stays.",
  too_little_test_data: "There is too little test data to tell whether the new model is better.",
};

export function runCard(modelPath, may, changed) {
  const element = h("section", { class: "card", hidden: true, "aria-label": "Training" });
  const now = h("div");
  const log = h("pre", { hidden: true, tabindex: 0, "aria-label": "Log" });
  let run = null;
  element.append(now, log);

  function show(_model, newest) {
    element.hidden = !newest;
    if (newest?.id !== run?.id) log.hidden = true;
    run = newest;
  }

  async function refresh() {
    if (!run) return;
    const detail = await get(`${modelPath}/runs/${run.id}`);
    const open = now.querySelector("details")?.open ?? false;
    const focused = now.contains(document.activeElement) ? document.activeElement.textContent : null;
    now.replaceChildren(...parts(detail));
    now.querySelector("details").open = open;
    if (focused) [...now.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
    if (!log.hidden) await readLog();
  }

  function parts(detail) {
    const status = detail.training_status;
    const active = status === 2 || status === 3;
    return [
      h("h2", {}, status === 3 ? PHASES[detail.phase] ?? "Starting" : `Training: ${statusName(status).toLowerCase()}`),
      status === 3 && h("progress", { max: 100, value: detail.percent, "aria-label": "Progress" }),
      detail.cancel_requested && active && h("p", { class: "s2" }, "Cancelling …"),
      detail.failure && status !== 4 && h("p", { class: status === 5 ? "bad" : "dim" }, detail.failure.reason),
      detail.gate && h("p", { class: detail.gate === "published" ? "good" : "s2" }, GATES[detail.gate]),
      figures(detail),
      ...curves(detail.curve),
      h("div", { class: "row" },
        active && may && h("button", { type: "button", class: "danger", disabled: detail.cancel_requested, onclick: cancel }, "Cancel the run"),
        detail.has_report && h("button", { type: "button", class: "quiet", onclick: report }, "Report"),
        detail.has_report && h("button", { type: "button", class: "quiet", onclick: save }, "Save full report"),
        detail.has_log && h("button", { type: "button", class: "quiet", "aria-expanded": String(!log.hidden), onclick: toggleLog }, "Log")),
      h("details", {}, h("summary", {}, "What happened"), table(["When", "Status", "Attempt", "Why"], detail.transitions.map((move) => [
        moment(move.at), statusName(move.to), String(move.attempt), move.reason_code ?? "–"]))),
    ].filter(Boolean);
  }

  function figures(detail) {
    const shown = [];
    if (detail.training_status === 3) shown.push(["Done", `${detail.percent.toFixed(0)} %`], ["Left", duration(detail.eta_s)], ["Last sign of life", detail.since_sign_of_life_s === null ? "–" : `${duration(detail.since_sign_of_life_s)} ago`], ["Attempt", detail.attempt]);
    const { base, custom } = detail.error_rates;
    if (base !== null) shown.push(["Words wrong, base model", percent(base)]);
    if (custom !== null) shown.push(["Words wrong, custom model", percent(custom)]);
    return shown.length ? h("dl", { class: "figures" }, shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))) : null;
  }

  function curves(points) {
    const names = [...new Set(points.map((point) => point.name))];
    return names.map((name) => curve(name, points.filter((point) => point.name === name))).filter(Boolean);
  }

  function curve(name, points) {
    if (points.length < 2) return null;
    const [width, height] = [640, 150];
    const steps = points.map((point) => point.steps_done);
    const values = points.map((point) => point.value);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (step) => 4 + ((step - steps[0]) / Math.max(1, steps.at(-1) - steps[0])) * (width - 8);
    const y = (value) => 8 + ((high - value) / (high - low || 1)) * (height - 16);
    const line = svg("polyline", { points: points.map((point) => `${x(point.steps_done).toFixed(1)},${y(point.value).toFixed(1)}`).join(" ") });
    const told = `${name} from ${values[0].toPrecision(3)} to ${values.at(-1).toPrecision(3)}`;
    return h("figure", {},
      svg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": told }, line),
      h("figcaption", { class: "row dim" }, h("span", { class: "grow" }, `${name} ${values[0].toPrecision(3)} at step ${steps[0]}`),
        h("span", {}, `${values.at(-1).toPrecision(3)} at step ${steps.at(-1)}`)));
  }

  async function cancel() {
    if (!(await ask("Cancel this run?", "What it has learned so far is lost; the model in use stays.", "Cancel the run"))) return;
    try { await send("POST", `${modelPath}/runs/${run.id}/cancel`); } catch (error) { say(error.message, "bad"); }
    changed();
  }
  // The whole report plays recordings and runs a script: it is looked at as a file, outside this page's policy.
  async function save() {
    try {
      const page = new Blob([await getText(`${modelPath}/runs/${run.id}/report`)], { type: "text/html" });
      const link = h("a", { href: URL.createObjectURL(page), download: `report-${run.id}.html` });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) { say(error.message, "bad"); }
  }
  async function report() {
    try { showPage("Training report", await getText(`${modelPath}/runs/${run.id}/report?view=summary`)); } catch (error) { say(error.message, "bad"); }
  }
  async function toggleLog(event) {
    log.hidden = !log.hidden;
    event.target.setAttribute("aria-expanded", String(!log.hidden));
    if (!log.hidden) await readLog();
  }
  async function readLog() {
    try { log.textContent = await getText(`${modelPath}/runs/${run.id}/log?tail=500`); } catch (error) { log.textContent = error.message; }
    log.scrollTop = log.scrollHeight;
  }
  return { element, show, refresh };
}
