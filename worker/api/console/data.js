// The training data of a model: files in, verdicts out.

import { get, poller, send, upload } from "./api.js";
import { ask, duration, h, pager, say, size, table } from "./dom.js";

const LIMIT = 25;
const KINDS = ".wav,.flac,.mp3,.m4a,.aac,.ogg,.opus,.txt,.vtt,.srt,.jsonl";
const VERDICTS = { waiting_for_pair: "waits for its other half", waiting_for_run: "ready", accepted: "accepted", rejected: "rejected" };

export function dataCard(modelId, may, changed) {
  const path = `/custom_models/${modelId}/data`;
  const poll = poller();
  const list = h("div");
  const going = h("div", { "aria-live": "polite" });
  let offset = 0;

  async function refresh() {
    const page = await poll(`${path}?offset=${offset}&limit=${LIMIT}`);
    if (page !== null) show(page);
  }

  function show(page) {
    if (!page.total_results) return list.replaceChildren(h("p", { class: "dim" }, "No files yet. A recording and its transcript have the same name, such as visit.wav and visit.txt."));
    const lines = page.result.map((item) => [
      item.name,
      h("span", { class: item.verdict === "rejected" ? "bad" : item.verdict === "waiting_for_pair" ? "s2" : "good" }, VERDICTS[item.verdict] + (item.reason ? `: ${item.reason}` : "")),
      item.duration_s === null ? size(item.bytes) : duration(item.duration_s),
      may ? h("button", { type: "button", class: "quiet", "aria-label": `Remove ${item.name}`, onclick: () => remove(item) }, "Remove") : "",
    ]);
    const go = async (to) => { offset = to; show(await get(`${path}?offset=${offset}&limit=${LIMIT}`)); };
    list.replaceChildren(...[table(["File", "Verdict", "Length", ""], lines), pager(offset, LIMIT, page.total_results, go)].filter(Boolean));
  }

  async function remove(item) {
    if (!(await ask("Remove this file?", `${item.name} is not used by later runs any more.`, "Remove"))) return;
    try { await send("DELETE", `${path}/${item.id}`); } catch (error) { say(error.message, "bad"); }
    changed();
  }

  async function take(files) {
    if (!files.length) return;
    const total = [...files].reduce((sum, file) => sum + file.size, 0) || 1;
    const bar = h("progress", { max: total, value: 0, "aria-label": "Upload" });
    const line = h("p", { class: "dim" }, `Sending ${files.length} files, ${size(total)}`);
    const refused = h("ul", { class: "bad" });
    let stored = 0;
    going.replaceChildren(line, bar, refused);
    await upload(modelId, files, (sent) => { bar.value = sent; line.textContent = `Sent ${size(Math.min(sent, total))} of ${size(total)}`; }, (answer) => {
      stored += answer.result.length;
      refused.append(...answer.refused.map((one) => h("li", {}, `${one.name}: ${one.reason}`)));
    });
    bar.remove();
    line.textContent = `${stored} of ${files.length} files are stored.`;
    if (!refused.children.length) refused.remove();
    changed();
  }

  const input = h("input", { type: "file", multiple: true, accept: KINDS, onchange: () => { take([...input.files]); input.value = ""; } });
  const drop = h("div", {
    class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); take([...event.dataTransfer.files]); },
  }, h("label", {}, "Recordings and transcripts: choose them, or drop them here", input));
  const element = h("section", { class: "card" }, h("h2", {}, "Training data"), may ? drop : null, going, list);
  return { element, refresh };
}
