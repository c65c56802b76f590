// All models: search, sort, pages, and a form for a new one.

import { get, poller, send } from "./api.js";
import { h, moment, pager, say, statusTag, table } from "./dom.js";

const LIMIT = 25;
const SORTS = { last_modified: "last change", name: "name", key: "key", id: "number", base_language_key: "base language", training_status: "status" };

export function listView(main, caller, signal) {
  const state = { q: "", sort: "last_modified", direction: "desc", offset: 0 };
  const found = h("div", { class: "card" }, h("p", { class: "dim" }, "Loading …"));
  const poll = poller();

  async function refresh() {
    const query = new URLSearchParams({ ...state, limit: LIMIT });
    try {
      const page = await poll(`/speech-to-text/models?${query}`);
      if (page !== null && !signal.aborted) found.replaceChildren(...rows(page));
    } catch (error) {
      found.replaceChildren(h("p", { class: "bad" }, error.message));
    }
  }

  function rows(page) {
    if (!page.total_results) return [h("p", {}, state.q ? "No model has this in its name or key." : "No models yet. Create the first one below.")];
    const lines = page.result.map((model) => [
      h("a", { href: `#/models/${model.id}` }, model.name),
      statusTag(model.training_log?.training_status),
      model.base_language_key,
      moment(model.last_modified),
    ]);
    const go = (offset) => { state.offset = offset; refresh(); found.scrollIntoView(); };
    return [table(["Name", "Status", "Base language", "Last change"], lines), pager(state.offset, LIMIT, page.total_results, go)].filter(Boolean);
  }

  const change = (name) => (event) => { state[name] = event.target.value; state.offset = 0; refresh(); };
  let typing;
  const search = h("input", { type: "search", maxlength: 200, oninput: (event) => { clearTimeout(typing); typing = setTimeout(() => change("q")(event), 200); } });
  const choice = (name, options) => h("select", { onchange: change(name) },
    Object.entries(options).map(([value, text]) => h("option", { value, selected: state[name] === value }, text)));
  main.replaceChildren(
    h("h1", {}, "Models"),
    h("div", { class: "card row" },
      h("label", { class: "grow" }, "Search in name and key", search),
      h("label", {}, "Sort by", choice("sort", SORTS)),
      h("label", {}, "Order", choice("direction", { desc: "last first", asc: "first first" }))),
    found,
    caller.role === "reader" || caller.organization_id === null ? null : newModel(caller),
  );
  refresh();
  const timer = setInterval(refresh, 20_000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function newModel(caller) {
  const name = h("input", { required: true, maxlength: 200, name: "name", autocomplete: "off" });
  const base = h("select", { required: true, name: "base" });
  get("/base_languages").then((page) => base.replaceChildren(...page.result.map((one) => h("option", { value: one.id }, `${one.name} (${one.key})`)))).catch((error) => say(error.message, "bad"));
  const form = h("form", { class: "card", onsubmit: create },
    h("h2", {}, "New model"),
    h("div", { class: "row" },
      h("label", { class: "grow" }, "Name", name),
      h("label", { class: "grow" }, "Base language", base),
      h("button", { type: "submit" }, "Create")));
  async function create(event) {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      const model = await send("POST", "/custom_models", { name: name.value, language_id: Number(base.value), organization_id: caller.organization_id });
      location.hash = `#/models/${model.id}`;
    } catch (error) {
      say(error.message, "bad");
    }
    button.disabled = false;
  }
  return form;
}
