// The API, as any other client uses it.

const BASE = "/api/v3";
const KEY = "speech-training-key";

export const signedIn = () => sessionStorage.getItem(KEY) !== null;
export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const dropKey = () => sessionStorage.removeItem(KEY);
const authorization = () => ({ Authorization: `Bearer ${sessionStorage.getItem(KEY)}` });

export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document?.code ?? "unknown";
    this.errors = document?.errors ?? [];
  }
}

async function problem(answer) {
  const found = new Problem(answer.status, await answer.json().catch(() => null));
  if (answer.status === 401 && signedIn()) {
    dropKey();
    dispatchEvent(new Event("signed-out"));
  }
  return found;
}

async function request(method, path, { body, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method,
      cache: "no-store",
      headers: { ...authorization(), ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, { detail: "The service cannot be reached.", code: "unreachable" });
  }
  if (!answer.ok && answer.status !== 304) throw await problem(answer);
  return answer;
}

export async function get(path) {
  return (await request("GET", path)).json();
}

export async function getText(path) {
  return (await request("GET", path)).text();
}

export async function send(method, path, body) {
  const headers = method === "POST" ? { "Idempotency-Key": crypto.randomUUID() } : {};
  const answer = await request(method, path, { body, headers });
  return answer.status === 204 ? null : answer.json();
}

// Polls with the entity tag of the last answer: nothing comes back, and null is returned, while nothing changed.
export function poller() {
  const tags = new Map();
  return async (path) => {
    const headers = tags.has(path) ? { "If-None-Match": tags.get(path) } : {};
    const answer = await request("GET", path, { headers });
    if (answer.status === 304) return null;
    tags.set(path, answer.headers.get("ETag"));
    return answer.json();
  };
}

// Calls `changed` whenever the model or its run changed, for as long as the signal lets it.
export async function listen(modelId, signal, changed) {
  while (!signal.aborted) {
    try {
      const answer = await fetch(`${BASE}/custom_models/${modelId}/changes`, { headers: authorization(), signal });
      if (!answer.ok) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        if (piece.value.includes("event: ")) changed();
      }
    } catch {
      if (signal.aborted) return;
    }
    await new Promise((again) => setTimeout(again, 5000));
  }
}

const LARGE = 16e6;
const PART = 8e6;

function post(path, body, headers, progress) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open(headers.method ?? "POST", BASE + path);
    for (const [name, value] of Object.entries({ ...authorization(), ...headers.set })) call.setRequestHeader(name, value);
    call.upload.onprogress = (event) => progress(event.loaded);
    call.onerror = () => reject(new Problem(0, { detail: "The connection broke.", code: "unreachable" }));
    call.onload = () => {
      let document = null;
      try { document = JSON.parse(call.responseText); } catch { /* told below */ }
      if (call.status < 300) resolve(document);
      else reject(new Problem(call.status, document));
    };
    call.send(body);
  });
}

async function inParts(modelId, file, progress) {
  const path = `/custom_models/${modelId}/uploads`;
  let upload = await send("POST", path, { name: file.name, bytes: file.size });
  let tries = 0;
  while (!upload.item) {
    const from = upload.received;
    const part = file.slice(from, from + PART);
    try {
      upload = await post(`${path}/${upload.id}`, part, { method: "PATCH", set: { "Upload-Offset": from } }, (sent) => progress(from + sent));
      tries = 0;
    } catch (error) {
      if ((error.status !== 0 && error.code !== "wrong_offset") || ++tries > 5) throw error;
      await new Promise((again) => setTimeout(again, 1000 * tries));
      upload = await get(`${path}/${upload.id}`);
    }
  }
  return { result: [upload.item], refused: [] };
}

// Groups of files that go in one request; a large file goes alone, in parts.
function groups(files) {
  const found = [];
  let room = 0;
  for (const file of files) {
    if (file.size > LARGE) found.push([file]);
    else if (room >= file.size && found.length && found.at(-1).length < 50) { found.at(-1).push(file); room -= file.size; continue; }
    else { found.push([file]); room = LARGE - file.size; continue; }
    room = 0;
  }
  return found;
}

// Uploads files; tells bytes sent, and the verdicts of each group as they come.
export async function upload(modelId, files, progress, verdicts) {
  let before = 0;
  for (const group of groups([...files])) {
    const told = (sent) => progress(before + sent);
    try {
      if (group[0].size > LARGE) verdicts(await inParts(modelId, group[0], told));
      else {
        const form = new FormData();
        for (const file of group) form.append("file", file, file.name);
        verdicts(await post(`/custom_models/${modelId}/data`, form, {}, told));
      }
    } catch (error) {
      const faults = error.errors?.length ? error.errors : group.map((file) => ({ field: file.name, code: error.code, message: error.message }));
      verdicts({ result: [], refused: faults.map((fault) => ({ name: fault.field, reason_code: fault.code, reason: fault.message })) });
    }
    before += group.reduce((sum, file) => sum + file.size, 0);
    progress(before);
  }
}
