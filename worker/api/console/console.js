// Sign in, and one view at a time.

import { dropKey, get, keepKey, signedIn } from "./api.js";
import { h, say } from "./dom.js";
import { listView } from "./list.js";
import { modelView } from "./model.js";

const main = document.getElementById("main");
const out = document.getElementById("sign-out");
const who = document.getElementById("who");
let caller = null;
let view = new AbortController();

function signInView(reason) {
  caller = null;
  out.hidden = true;
  who.textContent = "";
  const key = h("input", { type: "password", autocomplete: "off", required: true, autofocus: true, spellcheck: "false", id: "key" });
  const told = h("p", { class: "bad", role: "alert" }, reason ?? "");
  main.replaceChildren(h("form", { class: "card", onsubmit: signIn },
    h("h1", {}, "Sign in"),
    h("p", {}, "Use a key of your organization. It stays in this browser tab and goes when you close it."),
    h("label", {}, "Key", key), told,
    h("p", {}, h("button", { type: "submit" }, "Sign in"))));
  key.focus();
  async function signIn(event) {
    event.preventDefault();
    keepKey(key.value.trim());
    told.textContent = "";
    try {
      caller = await get("/caller");
      show();
    } catch (error) {
      dropKey();
      told.textContent = error.status === 401 ? "This key is not valid." : error.message;
      key.select();
    }
  }
}

async function show() {
  view.abort();
  view = new AbortController();
  if (!signedIn()) return signInView();
  try {
    caller ??= await get("/caller");
  } catch (error) {
    return signInView(error.status === 401 ? "Your key is not valid any more." : error.message);
  }
  out.hidden = false;
  who.textContent = caller.organization_id === null ? "operator" : `${caller.key_name}, ${caller.role}`;
  const model = /^#\/models\/(\d+)$/.exec(location.hash);
  if (model) await modelView(main, caller, Number(model[1]), view.signal);
  else listView(main, caller, view.signal);
}

out.addEventListener("click", () => { dropKey(); location.hash = "#/"; show(); });
addEventListener("hashchange", () => { show().then(() => main.focus({ preventScroll: true })); scrollTo(0, 0); });
addEventListener("signed-out", () => {
  if (!caller) return; // the form itself says that a key is wrong
  view.abort();
  signInView("Your key is not valid any more.");
});
addEventListener("unhandledrejection", (event) => say(event.reason?.message ?? "Something went wrong.", "bad"));
show();
