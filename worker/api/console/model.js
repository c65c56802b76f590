// One model: its training, its data, its past runs and versions.

import { getText, listen, poller, send } from "./api.js";
import { dataCard } from "./data.js";
import { ask, h, moment, say, showPage, statusTag, table } from "./dom.js";
import { runCard } from "./run.js";

const ACTIVE = [2, 3];
const GATES = { published: "in use", no_improvement: "no improvement", forgets: "forgets ordinary speech", too_little_test_data: "too little test data" };

export async function modelView(main, caller, id, signal) {
  const path = `/custom_models/${id}`;
  const may = caller.role !== "reader";
  const poll = poller();
  const head = h("section");
  const run = runCard(path, may, refresh);
  const data = dataCard(id, may, refresh);
  const past = h("section", { class: "card", hidden: true });
  const versions = h("section", { class: "card", hidden: true });
  let model = null;
  main.replaceChildren(h("p", {}, h("a", { href: "#/" }, "All models")), head, run.element, data.element, versions, past);

  async function refresh() {
    if (signal.aborted) return;
    try {
      const now = await poll(path);
      if (now !== null) { model = now; head.replaceChildren(...heading()); }
      const runs = await poll(`${path}/runs?limit=20`);
      if (runs !== null) showPast(runs);
      run.show(model, past.newest);
      await Promise.all([run.refresh(), data.refresh(), refreshVersions()]);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) {
        main.replaceChildren(h("h1", {}, "No such model"), h("p", {}, "It was deleted, or it never was. ", h("a", { href: "#/" }, "All models")));
        stop();
      } else say(error.message, "bad");
    }
  }

  function heading() {
    const status = model.training_log?.training_status;
    const busy = ACTIVE.includes(status);
    return [
      h("h1", {}, model.name),
      h("p", { class: "row" }, statusTag(status), h("span", { class: "dim" }, `${model.key}, from ${model.base_language_key}, changed ${moment(model.last_modified)}`)),
      may && h("p", { class: "row" },
        h("button", { type: "button", disabled: !model.is_trainable, onclick: train }, "Train"),
        h("button", { type: "button", class: "quiet", onclick: rename }, "Rename"),
        h("button", { type: "button", class: "danger", onclick: remove }, "Delete"),
        !model.is_trainable && !busy && h("span", { class: "dim" }, `Training needs ${caller.minimum_audio_s} s of audio with transcripts.`)),
    ].filter(Boolean);
  }

  async function act(what) {
    try { await what(); } catch (error) { say(error.message, "bad"); }
    refresh();
  }
  const train = () => act(async () => { await send("POST", `${path}/run`); say("Training is queued."); });
  async function remove() {
    const busy = ACTIVE.includes(model.training_log?.training_status);
    const warning = `“${model.name}”, its recordings and its published versions go for good.${busy ? " Its training stops." : ""}`;
    if (!(await ask("Delete this model?", warning, "Delete for good"))) return;
    try {
      await send("DELETE", path);
      location.hash = "#/";
      say("The model is deleted.");
    } catch (error) { say(error.message, "bad"); }
  }
  function rename() {
    const name = h("input", { value: model.name, required: true, maxlength: 200 });
    const form = h("form", { class: "row", onsubmit: save }, h("label", { class: "grow" }, "Name", name),
      h("button", { type: "submit" }, "Save"), h("button", { type: "button", class: "quiet", onclick: () => head.replaceChildren(...heading()) }, "Leave it"));
    head.replaceChildren(form);
    name.focus();
    function save(event) {
      event.preventDefault();
      act(async () => {
        model = await send("PUT", path, { name: name.value, language_id: model.base_language_id, organization_id: model.organization_id });
        head.replaceChildren(...heading());
      });
    }
  }

  function showPast(page) {
    past.newest = page.result[0];
    past.hidden = page.total_results < 2;
    const lines = page.result.slice(1).map((one) => [
      moment(one.requested), statusTag(one.training_status), one.failure?.reason ?? GATES[one.gate] ?? "–",
      h("button", { type: "button", class: "quiet", onclick: () => report(one.id) }, "Report"),
    ]);
    past.replaceChildren(h("h2", {}, "Earlier runs"), table(["Asked for", "Status", "What came of it", ""], lines));
  }
  const report = (runId) => act(async () => {
    showPage("Training report", await getText(`${path}/runs/${runId}/report?view=summary`));
  });

  async function refreshVersions() {
    const page = await poll(`${path}/versions?limit=20`);
    if (page === null) return;
    versions.hidden = !page.total_results;
    versions.replaceChildren(h("h2", {}, "Versions"), table(["Version", "Made", "Use"], page.result.map((one) => [
      `${one.number}`, moment(one.created),
      one.serving ? h("b", { class: "good" }, "in use") : may ? h("button", { type: "button", class: "quiet", onclick: () => serve(one.number) }, "Use this one") : "–",
    ])));
  }
  const serve = (number) => act(async () => { await send("POST", `${path}/versions/${number}/serve`); say(`Version ${number} is in use.`); });

  const timer = setInterval(refresh, 20_000);
  function stop() { clearInterval(timer); }
  signal.addEventListener("abort", stop);
  await refresh();
  if (!signal.aborted && model) listen(id, signal, refresh);
}
