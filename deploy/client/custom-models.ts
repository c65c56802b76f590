// Made by deploy/client/generate.py from schemas/openapi.json; do not edit.
import { ApiProblem, check, type Shape } from "./runtime.js";
export { ApiProblem, WrongShape } from "./runtime.js";

/** The newest entries of an organization. */
export interface AuditEntries {
  count: number;
  result: AuditEntry[];
}

/** One write, read or refusal. */
export interface AuditEntry {
  id: number;
  at: string;
  api_key_id: number | null;
  action: string;
  custom_model_id: number | null;
  run_id: string | null;
  detail: Record<string, unknown>;
  /** the client's, of a request; null: a command, or not kept then */
  address: string | null;
  /** X-Request-Id of the answer, or of a command */
  request_id: string | null;
}

/** What models start from. */
export interface BaseLanguage {
  id: number;
  key: string;
  name: string;
}

/** Every base language. */
export interface BaseLanguages {
  count: number;
  total_results: number;
  result: BaseLanguage[];
}

/** Whose key this is, and what it may use. */
export interface Caller {
  /** null for an operator's key */
  organization_id: number | null;
  role: "reader" | "member" | "owner" | "operator";
  key_name: string;
  models: number;
  stored_hours: number;
  minimum_audio_s: number;
}

/** One point of a curve. */
export interface CurvePoint {
  name: string;
  steps_done: number;
  value: number;
}

/** A page of models. */
export interface CustomModels {
  /** rows in this page */
  count: number;
  /** rows that match */
  total_results: number;
  result: Model[];
}

/** One file of a model's training data. */
export interface DataItem {
  id: number;
  name: string;
  kind: "audio" | "transcript" | "manifest";
  bytes: number;
  duration_s: number | null;
  split: "train" | "dev" | "test" | null;
  verdict: "waiting_for_pair" | "waiting_for_run" | "accepted" | "rejected";
  reason_code: string | null;
  reason: string | null;
  created: string;
}

/** A page of training data. */
export interface DataItems {
  count: number;
  total_results: number;
  result: DataItem[];
}

/** The newest deliveries of a webhook. */
export interface Deliveries {
  count: number;
  total_results: number;
  result: Delivery[];
}

/** One event on its way to a webhook. */
export interface Delivery {
  id: number;
  event_id: string;
  kind: "event" | "test";
  status: "waiting" | "delivered" | "failed";
  attempts: number;
  answer_status: number | null;
  error: string | null;
  created: string;
  due: string;
  ended: string | null;
}

/** Word error rates on the test split, as fractions. */
export interface ErrorRates {
  base: number | null;
  custom: number | null;
}

/** One field at fault. */
export interface FieldError {
  field: string;
  code: string;
  message: string;
}

export type Gate = "published" | "no_improvement" | "forgets" | "too_little_test_data";

/** A custom model, exactly as version 3 shows it. */
export interface Model {
  id: number;
  key: string;
  name: string;
  last_modified: string;
  organization_id: number;
  language_data: null;
  is_trainable: boolean;
  type: 1;
  base_language_id: number;
  base_language_key: string;
  /** absent until a run was asked for */
  training_log?: TrainingLog;
}

/** Body of create and update. All fields are required. */
export interface ModelWanted {
  name: string;
  /** the base language to start from */
  language_id: number;
  organization_id: number;
}

export type Phase = "load" | "prepare" | "train" | "evaluate" | "publish";

/** An error, RFC 9457, with a code that never changes. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: "malformed_json" | "malformed_multipart" | "malformed_request" | "unauthorized" | "not_allowed" | "organization_mismatch" | "quota_exceeded" | "not_found" | "method_not_allowed" | "too_slow" | "run_active" | "run_over" | "wrong_offset" | "idempotency_in_progress" | "too_large" | "too_long" | "too_many_files" | "unsupported_media" | "range_not_satisfiable" | "invalid" | "no_training_data" | "idempotency_mismatch" | "bad_file_name" | "no_files" | "unreadable_audio" | "empty_transcript" | "unreadable_transcript" | "unreadable_manifest" | "address_refused" | "rate_limited" | "head_too_large" | "internal" | "unavailable";
  errors?: FieldError[];
}

/** A file that was not stored, and why. */
export interface RefusedFile {
  name: string;
  reason_code: string;
  reason: string;
}

/** One run, for a list. */
export interface Run {
  id: string;
  custom_model_id: number;
  training_status: TrainingStatus;
  requested: string;
  started: string | null;
  ended: string | null;
  attempt: number;
  phase: Phase | null;
  percent: number;
  eta_s: number | null;
  /** seconds since the trainer last made progress; null unless running */
  since_sign_of_life_s: number | null;
  cancel_requested: boolean;
  failure: RunFailure | null;
  gate: Gate | null;
}

/** One run, whole. */
export interface RunDetail {
  id: string;
  custom_model_id: number;
  training_status: TrainingStatus;
  requested: string;
  started: string | null;
  ended: string | null;
  attempt: number;
  phase: Phase | null;
  percent: number;
  eta_s: number | null;
  /** seconds since the trainer last made progress; null unless running */
  since_sign_of_life_s: number | null;
  cancel_requested: boolean;
  failure: RunFailure | null;
  gate: Gate | null;
  failures: number;
  data_report: Record<string, unknown> | null;
  error_rates: ErrorRates;
  figures: Record<string, unknown> | null;
  curve: CurvePoint[];
  transitions: Transition[];
  has_log: boolean;
  has_report: boolean;
}

/** Why a run, or its last attempt, ended badly. */
export interface RunFailure {
  class: string;
  code: string | null;
  reason: string | null;
}

/** A page of runs, the newest first. */
export interface Runs {
  count: number;
  total_results: number;
  result: Run[];
}

/** Where the newest run of a model stands. */
export interface TrainingLog {
  /** the model's own id: a custom model is itself a language */
  language_id: number;
  training_status: TrainingStatus;
  log_name: null;
}

export type TrainingStatus = 1 | 2 | 3 | 4 | 5;

/** One move of a run. */
export interface Transition {
  sequence: number;
  from: TrainingStatus | null;
  to: TrainingStatus;
  attempt: number;
  at: string;
  reason_code: string | null;
}

/** A file on its way. */
export interface Upload {
  id: string;
  name: string;
  bytes: number;
  /** where the next part begins */
  received: number;
  expires: string;
  /** the data item, once the last byte is there */
  item: DataItem | null;
}

/** A large file that will come in parts. */
export interface UploadWanted {
  name: string;
  bytes: number;
  split?: "train" | "dev" | "test" | null;
}

/** What became of every file of an upload. */
export interface Uploaded {
  count: number;
  result: DataItem[];
  refused: RefusedFile[];
}

/** What a run published. */
export interface Version {
  number: number;
  run_id: string;
  created: string;
  serving: boolean;
  figures: Record<string, unknown>;
}

/** A page of versions, the newest first. */
export interface Versions {
  count: number;
  total_results: number;
  result: Version[];
}

/** Where events go. */
export interface Webhook {
  id: number;
  url: string;
  created: string;
  /** shown once, in the first answer when the webhook is made; null ever after, in the answer to a repeat with the same Idempotency-Key as well: delete the webhook and make another where it was lost. Signs every delivery */
  secret: string | null;
}

/** Where events should go. */
export interface WebhookWanted {
  /** https, to a public address */
  url: string;
}

/** The organization's webhooks. */
export interface Webhooks {
  count: number;
  total_results: number;
  result: Webhook[];
}

const shapes: Record<string, Shape> = {
  AuditEntries: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "AuditEntry" } } } },
  AuditEntry: { kind: "object", optional: [], fields: { "id": { kind: "integer" }, "at": { kind: "moment" }, "api_key_id": { kind: "any", of: [{ kind: "integer" }, { kind: "null" }] }, "action": { kind: "string" }, "custom_model_id": { kind: "any", of: [{ kind: "integer" }, { kind: "null" }] }, "run_id": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "detail": { kind: "map" }, "address": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "request_id": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] } } },
  BaseLanguage: { kind: "object", optional: [], fields: { "id": { kind: "integer" }, "key": { kind: "string" }, "name": { kind: "string" } } },
  BaseLanguages: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "BaseLanguage" } } } },
  Caller: { kind: "object", optional: [], fields: { "organization_id": { kind: "any", of: [{ kind: "integer" }, { kind: "null" }] }, "role": { kind: "one", values: ["reader", "member", "owner", "operator"] }, "key_name": { kind: "string" }, "models": { kind: "integer" }, "stored_hours": { kind: "number" }, "minimum_audio_s": { kind: "number" } } },
  CurvePoint: { kind: "object", optional: [], fields: { "name": { kind: "string" }, "steps_done": { kind: "integer" }, "value": { kind: "number" } } },
  CustomModels: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "Model" } } } },
  DataItem: { kind: "object", optional: [], fields: { "id": { kind: "integer" }, "name": { kind: "string" }, "kind": { kind: "one", values: ["audio", "transcript", "manifest"] }, "bytes": { kind: "integer" }, "duration_s": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "split": { kind: "any", of: [{ kind: "one", values: ["train", "dev", "test"] }, { kind: "null" }] }, "verdict": { kind: "one", values: ["waiting_for_pair", "waiting_for_run", "accepted", "rejected"] }, "reason_code": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "reason": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "created": { kind: "moment" } } },
  DataItems: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "DataItem" } } } },
  Deliveries: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "Delivery" } } } },
  Delivery: { kind: "object", optional: [], fields: { "id": { kind: "integer" }, "event_id": { kind: "string" }, "kind": { kind: "one", values: ["event", "test"] }, "status": { kind: "one", values: ["waiting", "delivered", "failed"] }, "attempts": { kind: "integer" }, "answer_status": { kind: "any", of: [{ kind: "integer" }, { kind: "null" }] }, "error": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "created": { kind: "moment" }, "due": { kind: "moment" }, "ended": { kind: "any", of: [{ kind: "moment" }, { kind: "null" }] } } },
  ErrorRates: { kind: "object", optional: [], fields: { "base": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "custom": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] } } },
  FieldError: { kind: "object", optional: [], fields: { "field": { kind: "string" }, "code": { kind: "string" }, "message": { kind: "string" } } },
  Gate: { kind: "one", values: ["published", "no_improvement", "forgets", "too_little_test_data"] },
  Model: { kind: "object", optional: ["training_log"], fields: { "id": { kind: "integer" }, "key": { kind: "string" }, "name": { kind: "string" }, "last_modified": { kind: "moment" }, "organization_id": { kind: "integer" }, "language_data": { kind: "null" }, "is_trainable": { kind: "boolean" }, "type": { kind: "one", values: [1] }, "base_language_id": { kind: "integer" }, "base_language_key": { kind: "string" }, "training_log": { kind: "ref", name: "TrainingLog" } } },
  ModelWanted: { kind: "object", optional: [], fields: { "name": { kind: "string" }, "language_id": { kind: "integer" }, "organization_id": { kind: "integer" } } },
  Phase: { kind: "one", values: ["load", "prepare", "train", "evaluate", "publish"] },
  Problem: { kind: "object", optional: ["errors"], fields: { "type": { kind: "string" }, "title": { kind: "string" }, "status": { kind: "integer" }, "detail": { kind: "string" }, "code": { kind: "one", values: ["malformed_json", "malformed_multipart", "malformed_request", "unauthorized", "not_allowed", "organization_mismatch", "quota_exceeded", "not_found", "method_not_allowed", "too_slow", "run_active", "run_over", "wrong_offset", "idempotency_in_progress", "too_large", "too_long", "too_many_files", "unsupported_media", "range_not_satisfiable", "invalid", "no_training_data", "idempotency_mismatch", "bad_file_name", "no_files", "unreadable_audio", "empty_transcript", "unreadable_transcript", "unreadable_manifest", "address_refused", "rate_limited", "head_too_large", "internal", "unavailable"] }, "errors": { kind: "list", of: { kind: "ref", name: "FieldError" } } } },
  RefusedFile: { kind: "object", optional: [], fields: { "name": { kind: "string" }, "reason_code": { kind: "string" }, "reason": { kind: "string" } } },
  Run: { kind: "object", optional: [], fields: { "id": { kind: "string" }, "custom_model_id": { kind: "integer" }, "training_status": { kind: "ref", name: "TrainingStatus" }, "requested": { kind: "moment" }, "started": { kind: "any", of: [{ kind: "moment" }, { kind: "null" }] }, "ended": { kind: "any", of: [{ kind: "moment" }, { kind: "null" }] }, "attempt": { kind: "integer" }, "phase": { kind: "any", of: [{ kind: "ref", name: "Phase" }, { kind: "null" }] }, "percent": { kind: "number" }, "eta_s": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "since_sign_of_life_s": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "cancel_requested": { kind: "boolean" }, "failure": { kind: "any", of: [{ kind: "ref", name: "RunFailure" }, { kind: "null" }] }, "gate": { kind: "any", of: [{ kind: "ref", name: "Gate" }, { kind: "null" }] } } },
  RunDetail: { kind: "object", optional: [], fields: { "id": { kind: "string" }, "custom_model_id": { kind: "integer" }, "training_status": { kind: "ref", name: "TrainingStatus" }, "requested": { kind: "moment" }, "started": { kind: "any", of: [{ kind: "moment" }, { kind: "null" }] }, "ended": { kind: "any", of: [{ kind: "moment" }, { kind: "null" }] }, "attempt": { kind: "integer" }, "phase": { kind: "any", of: [{ kind: "ref", name: "Phase" }, { kind: "null" }] }, "percent": { kind: "number" }, "eta_s": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "since_sign_of_life_s": { kind: "any", of: [{ kind: "number" }, { kind: "null" }] }, "cancel_requested": { kind: "boolean" }, "failure": { kind: "any", of: [{ kind: "ref", name: "RunFailure" }, { kind: "null" }] }, "gate": { kind: "any", of: [{ kind: "ref", name: "Gate" }, { kind: "null" }] }, "failures": { kind: "integer" }, "data_report": { kind: "any", of: [{ kind: "map" }, { kind: "null" }] }, "error_rates": { kind: "ref", name: "ErrorRates" }, "figures": { kind: "any", of: [{ kind: "map" }, { kind: "null" }] }, "curve": { kind: "list", of: { kind: "ref", name: "CurvePoint" } }, "transitions": { kind: "list", of: { kind: "ref", name: "Transition" } }, "has_log": { kind: "boolean" }, "has_report": { kind: "boolean" } } },
  RunFailure: { kind: "object", optional: [], fields: { "class": { kind: "string" }, "code": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] }, "reason": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] } } },
  Runs: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "Run" } } } },
  TrainingLog: { kind: "object", optional: [], fields: { "language_id": { kind: "integer" }, "training_status": { kind: "ref", name: "TrainingStatus" }, "log_name": { kind: "null" } } },
  TrainingStatus: { kind: "one", values: [1, 2, 3, 4, 5] },
  Transition: { kind: "object", optional: [], fields: { "sequence": { kind: "integer" }, "from": { kind: "any", of: [{ kind: "ref", name: "TrainingStatus" }, { kind: "null" }] }, "to": { kind: "ref", name: "TrainingStatus" }, "attempt": { kind: "integer" }, "at": { kind: "moment" }, "reason_code": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] } } },
  Upload: { kind: "object", optional: [], fields: { "id": { kind: "string" }, "name": { kind: "string" }, "bytes": { kind: "integer" }, "received": { kind: "integer" }, "expires": { kind: "moment" }, "item": { kind: "any", of: [{ kind: "ref", name: "DataItem" }, { kind: "null" }] } } },
  UploadWanted: { kind: "object", optional: ["split"], fields: { "name": { kind: "string" }, "bytes": { kind: "integer" }, "split": { kind: "any", of: [{ kind: "one", values: ["train", "dev", "test"] }, { kind: "null" }] } } },
  Uploaded: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "DataItem" } }, "refused": { kind: "list", of: { kind: "ref", name: "RefusedFile" } } } },
  Version: { kind: "object", optional: [], fields: { "number": { kind: "integer" }, "run_id": { kind: "string" }, "created": { kind: "moment" }, "serving": { kind: "boolean" }, "figures": { kind: "map" } } },
  Versions: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "Version" } } } },
  Webhook: { kind: "object", optional: [], fields: { "id": { kind: "integer" }, "url": { kind: "string" }, "created": { kind: "moment" }, "secret": { kind: "any", of: [{ kind: "string" }, { kind: "null" }] } } },
  WebhookWanted: { kind: "object", optional: [], fields: { "url": { kind: "string" } } },
  Webhooks: { kind: "object", optional: [], fields: { "count": { kind: "integer" }, "total_results": { kind: "integer" }, "result": { kind: "list", of: { kind: "ref", name: "Webhook" } } } },
};

export class CustomModelsClient {
  constructor(private readonly url: string, private readonly key: string) {}

  private async send(method: string, path: string, status: number, sent: {
    body: unknown; options: Record<string, unknown>; query: readonly string[];
  }): Promise<Response> {
    const address = new URL(path, this.url);
    const headers: Record<string, string> = { Authorization: `Bearer ${this.key}` };
    for (const [name, value] of Object.entries(sent.options)) {
      if (value === undefined) continue;
      if (sent.query.includes(name)) address.searchParams.set(name, String(value));
      else headers[name] = String(value);
    }
    const raw = sent.body instanceof FormData || sent.body instanceof Blob;
    if (sent.body !== undefined && !raw) headers["Content-Type"] = "application/json";
    const body = sent.body === undefined ? null : raw ? (sent.body as FormData | Blob) : JSON.stringify(sent.body);
    const answer = await fetch(address, { method, headers, body });
    if (answer.status !== status && !(status === 200 && answer.status === 206)) {
      throw new ApiProblem(check<Problem>(await answer.json(), "Problem", shapes));
    }
    return answer;
  }

  /** Create a custom model. */
  async createModel(body: ModelWanted, options: { "Idempotency-Key"?: string } = {}): Promise<Model> {
    const answer = await this.send("POST", `/api/v3/custom_models`, 201, { body: body, options: options, query: [] });
    return check<Model>(await answer.json(), "Model", shapes);
  }

  /** List the caller's custom models. */
  async listModels(options: { "offset"?: number; "limit"?: number; "q"?: string; "sort"?: "id" | "name" | "key" | "last_modified" | "base_language_key" | "training_status"; "direction"?: "asc" | "desc" } = {}): Promise<CustomModels> {
    const answer = await this.send("GET", `/api/v3/speech-to-text/models`, 200, { body: undefined, options: options, query: ["offset", "limit", "q", "sort", "direction"] });
    return check<CustomModels>(await answer.json(), "CustomModels", shapes);
  }

  /** One custom model. */
  async readModel(id: number): Promise<Model> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}`, 200, { body: undefined, options: {}, query: [] });
    return check<Model>(await answer.json(), "Model", shapes);
  }

  /** Change a model's metadata. */
  async updateModel(id: number, body: ModelWanted, options: { "Idempotency-Key"?: string } = {}): Promise<Model> {
    const answer = await this.send("PUT", `/api/v3/custom_models/${id}`, 200, { body: body, options: options, query: [] });
    return check<Model>(await answer.json(), "Model", shapes);
  }

  /** Delete a model and stop its run. */
  async deleteModel(id: number, options: { "Idempotency-Key"?: string } = {}): Promise<undefined> {
    await this.send("DELETE", `/api/v3/custom_models/${id}`, 204, { body: undefined, options: options, query: [] });
    return undefined;
  }

  /** A model's training data. */
  async listData(id: number, options: { "offset"?: number; "limit"?: number } = {}): Promise<DataItems> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/data`, 200, { body: undefined, options: options, query: ["offset", "limit"] });
    return check<DataItems>(await answer.json(), "DataItems", shapes);
  }

  /** Upload training data. */
  async uploadData(id: number, body: FormData, options: { "Idempotency-Key"?: string } = {}): Promise<Uploaded> {
    const answer = await this.send("POST", `/api/v3/custom_models/${id}/data`, 201, { body: body, options: options, query: [] });
    return check<Uploaded>(await answer.json(), "Uploaded", shapes);
  }

  /** Start training. */
  async runModel(id: number, options: { "Idempotency-Key"?: string } = {}): Promise<Model> {
    const answer = await this.send("POST", `/api/v3/custom_models/${id}/run`, 202, { body: undefined, options: options, query: [] });
    return check<Model>(await answer.json(), "Model", shapes);
  }

  /** Remove one file, and what runs made of it but the weights of versions. */
  async deleteData(id: number, data_id: number, options: { "Idempotency-Key"?: string } = {}): Promise<undefined> {
    await this.send("DELETE", `/api/v3/custom_models/${id}/data/${data_id}`, 204, { body: undefined, options: options, query: [] });
    return undefined;
  }

  /** Begin a large file. */
  async createUpload(id: number, body: UploadWanted, options: { "Idempotency-Key"?: string } = {}): Promise<Upload> {
    const answer = await this.send("POST", `/api/v3/custom_models/${id}/uploads`, 201, { body: body, options: options, query: [] });
    return check<Upload>(await answer.json(), "Upload", shapes);
  }

  /** Where a large file stands. */
  async readUpload(id: number, upload_id: string): Promise<Upload> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/uploads/${upload_id}`, 200, { body: undefined, options: {}, query: [] });
    return check<Upload>(await answer.json(), "Upload", shapes);
  }

  /** The next part of a large file. */
  async addPart(id: number, upload_id: string, body: Blob, options: { "Upload-Offset": number; "Idempotency-Key"?: string }): Promise<Upload> {
    const answer = await this.send("PATCH", `/api/v3/custom_models/${id}/uploads/${upload_id}`, 200, { body: body, options: options, query: [] });
    return check<Upload>(await answer.json(), "Upload", shapes);
  }

  /** Give a large file up. */
  async deleteUpload(id: number, upload_id: string, options: { "Idempotency-Key"?: string } = {}): Promise<undefined> {
    await this.send("DELETE", `/api/v3/custom_models/${id}/uploads/${upload_id}`, 204, { body: undefined, options: options, query: [] });
    return undefined;
  }

  /** A model's runs, the newest first. */
  async listRuns(id: number, options: { "offset"?: number; "limit"?: number } = {}): Promise<Runs> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/runs`, 200, { body: undefined, options: options, query: ["offset", "limit"] });
    return check<Runs>(await answer.json(), "Runs", shapes);
  }

  /** One run. */
  async readRun(id: number, run_id: string): Promise<RunDetail> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/runs/${run_id}`, 200, { body: undefined, options: {}, query: [] });
    return check<RunDetail>(await answer.json(), "RunDetail", shapes);
  }

  /** Cancel a run. */
  async cancelRun(id: number, run_id: string, options: { "Idempotency-Key"?: string } = {}): Promise<RunDetail> {
    const answer = await this.send("POST", `/api/v3/custom_models/${id}/runs/${run_id}/cancel`, 202, { body: undefined, options: options, query: [] });
    return check<RunDetail>(await answer.json(), "RunDetail", shapes);
  }

  /** The log of a run's newest attempt. */
  async readLog(id: number, run_id: string, options: { "tail"?: number; "Range"?: string } = {}): Promise<string> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/runs/${run_id}/log`, 200, { body: undefined, options: options, query: ["tail"] });
    return answer.text();
  }

  /** A page on a run, for people. */
  async readReport(id: number, run_id: string): Promise<string> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/runs/${run_id}/report`, 200, { body: undefined, options: {}, query: [] });
    return answer.text();
  }

  /** What a model has published. */
  async listVersions(id: number, options: { "offset"?: number; "limit"?: number } = {}): Promise<Versions> {
    const answer = await this.send("GET", `/api/v3/custom_models/${id}/versions`, 200, { body: undefined, options: options, query: ["offset", "limit"] });
    return check<Versions>(await answer.json(), "Versions", shapes);
  }

  /** Put a version (back) into use. */
  async serveVersion(id: number, number: number, options: { "Idempotency-Key"?: string } = {}): Promise<Model> {
    const answer = await this.send("POST", `/api/v3/custom_models/${id}/versions/${number}/serve`, 200, { body: undefined, options: options, query: [] });
    return check<Model>(await answer.json(), "Model", shapes);
  }

  /** What models start from. */
  async baseLanguages(): Promise<BaseLanguages> {
    const answer = await this.send("GET", `/api/v3/base_languages`, 200, { body: undefined, options: {}, query: [] });
    return check<BaseLanguages>(await answer.json(), "BaseLanguages", shapes);
  }

  /** Whose key this is. */
  async caller(): Promise<Caller> {
    const answer = await this.send("GET", `/api/v3/caller`, 200, { body: undefined, options: {}, query: [] });
    return check<Caller>(await answer.json(), "Caller", shapes);
  }

  /** Who changed what. */
  async auditLog(options: { "before"?: number; "limit"?: number } = {}): Promise<AuditEntries> {
    const answer = await this.send("GET", `/api/v3/audit_log`, 200, { body: undefined, options: options, query: ["before", "limit"] });
    return check<AuditEntries>(await answer.json(), "AuditEntries", shapes);
  }

  /** Where events go. */
  async listWebhooks(): Promise<Webhooks> {
    const answer = await this.send("GET", `/api/v3/webhooks`, 200, { body: undefined, options: {}, query: [] });
    return check<Webhooks>(await answer.json(), "Webhooks", shapes);
  }

  /** Send events to an address. */
  async createWebhook(body: WebhookWanted, options: { "Idempotency-Key"?: string } = {}): Promise<Webhook> {
    const answer = await this.send("POST", `/api/v3/webhooks`, 201, { body: body, options: options, query: [] });
    return check<Webhook>(await answer.json(), "Webhook", shapes);
  }

  /** Send no more events there. */
  async deleteWebhook(webhook_id: number, options: { "Idempotency-Key"?: string } = {}): Promise<undefined> {
    await this.send("DELETE", `/api/v3/webhooks/${webhook_id}`, 204, { body: undefined, options: options, query: [] });
    return undefined;
  }

  /** Send a test event. */
  async testWebhook(webhook_id: number, options: { "Idempotency-Key"?: string } = {}): Promise<Delivery> {
    const answer = await this.send("POST", `/api/v3/webhooks/${webhook_id}/test`, 202, { body: undefined, options: options, query: [] });
    return check<Delivery>(await answer.json(), "Delivery", shapes);
  }

  /** What was sent. */
  async listDeliveries(webhook_id: number, options: { "offset"?: number; "limit"?: number } = {}): Promise<Deliveries> {
    const answer = await this.send("GET", `/api/v3/webhooks/${webhook_id}/deliveries`, 200, { body: undefined, options: options, query: ["offset", "limit"] });
    return check<Deliveries>(await answer.json(), "Deliveries", shapes);
  }
}
