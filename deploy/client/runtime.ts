// What the generated client needs at run time: problems as errors, and a check of every field of every answer.

export type Shape =
  | { kind: "string" | "number" | "integer" | "boolean" | "null" | "moment" | "map" | "unknown" }
  | { kind: "one"; values: readonly unknown[] }
  | { kind: "ref"; name: string }
  | { kind: "list"; of: Shape }
  | { kind: "any"; of: readonly Shape[] }
  | { kind: "object"; optional: readonly string[]; fields: Readonly<Record<string, Shape>> };

/** An answer that is not what the documentation says. */
export class WrongShape extends Error {}

/** A problem document, RFC 9457. */
export class ApiProblem extends Error {
  constructor(readonly problem: { status: number; code: string; detail: string }) {
    super(`${problem.status} ${problem.code}: ${problem.detail}`);
  }
}

const MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

function fits(value: unknown, kind: string): boolean {
  switch (kind) {
    case "string": return typeof value === "string";
    case "number": return typeof value === "number";
    case "integer": return Number.isInteger(value);
    case "boolean": return typeof value === "boolean";
    case "null": return value === null;
    case "moment": return typeof value === "string" && MOMENT.test(value);
    case "map": return typeof value === "object" && value !== null && !Array.isArray(value);
    default: return true;
  }
}

/** The first thing that is wrong, with the way to it; undefined where all is as documented. */
function fault(value: unknown, shape: Shape, at: string, shapes: Record<string, Shape>): string | undefined {
  switch (shape.kind) {
    case "one":
      return shape.values.includes(value) ? undefined : `${at} is ${JSON.stringify(value)}`;
    case "ref": {
      const named = shapes[shape.name];
      return named === undefined ? `${at}: no shape ${shape.name}` : fault(value, named, at, shapes);
    }
    case "any": {
      const faults = shape.of.map((one) => fault(value, one, at, shapes));
      return faults.includes(undefined) ? undefined : faults.join(" and ");
    }
    case "list":
      if (!Array.isArray(value)) return `${at} is no list`;
      return first(value.map((one, index) => fault(one, shape.of, `${at}[${index}]`, shapes)));
    case "object": {
      if (!fits(value, "map")) return `${at} is no object`;
      const found = value as Record<string, unknown>;
      const extra = Object.keys(found).find((name) => !(name in shape.fields));
      if (extra !== undefined) return `${at}.${extra} is not documented`;
      return first(Object.entries(shape.fields).map(([name, inner]) =>
        name in found ? fault(found[name], inner, `${at}.${name}`, shapes)
          : shape.optional.includes(name) ? undefined : `${at}.${name} is missing`));
    }
    default:
      return fits(value, shape.kind) ? undefined : `${at} is ${JSON.stringify(value)}, not ${shape.kind}`;
  }
}

const first = (faults: readonly (string | undefined)[]) => faults.find((one) => one !== undefined);

/** The value itself, when every field of it is as documented. */
export function check<T>(value: unknown, name: string, shapes: Record<string, Shape>): T {
  const wrong = fault(value, { kind: "ref", name }, name, shapes);
  if (wrong !== undefined) throw new WrongShape(wrong);
  return value as T;
}
