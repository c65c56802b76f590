// The whole way of a customer against a live API: create, upload, run, poll until SUCCESS, delete.
//   node walk.js <url> <key> <organization id> <language id> <recording.wav> <transcript.txt>
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { ApiProblem, CustomModelsClient } from "./custom-models.js";

const SUCCESS = 4;
const FAILED = 5;
const [url, key, organization, language, ...files] = process.argv.slice(2);
if (url === undefined || key === undefined) throw new Error("usage: walk.js <url> <key> <organization> <language> <files…>");
const client = new CustomModelsClient(url, key);

async function refused(what: Promise<unknown>, code: string): Promise<void> {
  try {
    await what;
  } catch (error) {
    if (error instanceof ApiProblem && error.problem.code === code) return;
    throw error;
  }
  throw new Error(`expected ${code}`);
}

const wanted = { name: "Walk", language_id: Number(language), organization_id: Number(organization) };
const model = await client.createModel(wanted);
await refused(client.runModel(model.id), "no_training_data");
const form = new FormData();
for (const file of files) form.append("file", new Blob([new Uint8Array(await readFile(file))]), basename(file));
const uploaded = await client.uploadData(model.id, form);
if (uploaded.refused.length > 0) throw new Error(`refused: ${JSON.stringify(uploaded.refused)}`);
const data = await client.listData(model.id, { limit: 100 });
if (data.total_results !== files.length) throw new Error(`${data.total_results} files are listed`);
await client.updateModel(model.id, { ...wanted, name: "Walk on" });
const listed = await client.listModels({ q: "walk ON", sort: "last_modified", direction: "desc" });
if (listed.result[0]?.id !== model.id) throw new Error("the model is not listed");

let now = await client.runModel(model.id, { "Idempotency-Key": crypto.randomUUID() });
console.log(JSON.stringify({ model: model.id, status: now.training_log?.training_status }));
while (now.training_log?.training_status !== SUCCESS) {
  if (now.training_log?.training_status === FAILED) throw new Error("the run failed");
  await new Promise((later) => setTimeout(later, 200));
  now = await client.readModel(model.id);
}
const runs = await client.listRuns(model.id);
const run = runs.result[0];
if (run === undefined) throw new Error("no run is listed");
const detail = await client.readRun(model.id, run.id);
const versions = await client.listVersions(model.id);
await client.readReport(model.id, run.id);
await client.baseLanguages();
await client.caller();
await client.deleteModel(model.id);
await refused(client.readModel(model.id), "not_found");
console.log(JSON.stringify({ done: true, moves: detail.transitions.map((move) => move.to), versions: versions.count }));
