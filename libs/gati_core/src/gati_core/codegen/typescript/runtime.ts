type Step = string | number;
type Path = ReadonlyArray<Step>;

/** One thing that is wrong with a value. */
export interface FieldError {
  readonly path: Path;
  readonly expected: string;
  readonly actual: string;
  readonly message: string;
}

/** Functions by the names that types call them by; each returns whether a value passes. Fill it before validating. */
export const checks: Record<string, (value: unknown) => boolean> = {};

const MAX_ERRORS = 500;
const MAX_NESTING = 200;
type Check = (value: unknown, path: Path, errors: FieldError[]) => void;
type Rule = readonly [expected: string, test: (value: unknown) => boolean, message?: string];

const shown = (value: unknown): string => {
  if (value === undefined) return "nothing";
  if (typeof value === "string") {
    const characters = [...value];
    return JSON.stringify(characters.length <= 60 ? value : characters.slice(0, 60).join("") + "…");
  }
  if (Array.isArray(value)) return `array[${value.length}]`;
  return value !== null && typeof value === "object" ? "object" : String(value);
};

const wrong = (errors: FieldError[], path: Path, expected: string, value: unknown, secret = false, message = ""): void => {
  if (errors.length >= MAX_ERRORS) return;
  const actual = secret && value !== undefined ? "(not shown)" : shown(value);
  const said = message || (value === undefined ? "value is required" : `expected ${expected}, got ${actual}`);
  errors.push({ path, expected, actual, message: said });
};

const wrongSize = (errors: FieldError[], path: Path, expected: string, found: number): void => {
  if (errors.length < MAX_ERRORS) {
    errors.push({ path, expected, actual: String(found), message: `expected ${expected}, got ${found}` });
  }
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const has = (value: Record<string, unknown>, name: string): boolean => Object.prototype.hasOwnProperty.call(value, name);
const isNumber = (value: unknown): value is number => typeof value === "number";
const isText = (value: unknown): value is string => typeof value === "string";
const length = (text: string): number => [...text].length;
const bytes = (text: string): number => (text.length / 4) * 3 - (text.match(/=/g) ?? []).length;
const isDate = (text: string): boolean => {
  const [year = 0, month = 0, day = 0] = text.slice(0, 10).split("-").map(Number);
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  const days = [31, isLeap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1] ?? 0;
  return year > 0 && day <= days;
};
const canonical = (value: unknown): string => {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (!isObject(value)) return JSON.stringify(value) ?? "";
  return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
};
const custom = (name: string, value: unknown): boolean => {
  const check = checks[name];
  if (check === undefined) throw new Error(`no check ${JSON.stringify(name)}: set checks[${JSON.stringify(name)}]`);
  return check(value);
};

interface Flags {
  readonly expected: string;
  readonly optional?: boolean;
  readonly nullable?: boolean;
  readonly secret?: boolean;
}

/** What a kind says, the flags around it, and the constraints after it. */
const type = (flags: Flags, kind: Check, ...rules: Rule[]): Check => (value, path, errors) => {
  if (value === undefined) {
    if (!flags.optional) wrong(errors, path, flags.expected, value);
    return;
  }
  if (value === null && flags.nullable) return;
  const before = errors.length;
  kind(value, path, errors);
  if (errors.length > before) return;
  for (const [expected, test, message] of rules) {
    if (!test(value)) {
      wrong(errors, path, expected, value, flags.secret, message);
      return;
    }
  }
};
const simple = (flags: Flags, test: (value: unknown) => boolean): Check => (value, path, errors) => {
  if (!test(value)) wrong(errors, path, flags.expected, value, flags.secret);
};
const absent = (flags: Flags): Check => (value, path, errors) => {
  if (value !== undefined) wrong(errors, path, flags.expected, value, flags.secret);
};
const collect = (check: Check, value: unknown, path: Path): FieldError[] => {
  const errors: FieldError[] = [];
  check(value, path, errors);
  return errors;
};

interface ObjectRules {
  readonly properties: ReadonlyArray<readonly [name: string, check: Check, required: string | null]>;
  readonly more: boolean | Check;
  readonly names?: Check;
  readonly min?: readonly [number, string];
  readonly max?: readonly [number, string];
}
const object = (flags: Flags, rules: ObjectRules): Check => {
  const known = new Set(rules.properties.map(([name]) => name));
  return (value, path, errors) => {
    if (!isObject(value)) return wrong(errors, path, flags.expected, value, flags.secret);
    for (const [name, check, required] of rules.properties) {
      if (has(value, name)) check(value[name], [...path, name], errors);
      else if (required !== null) wrong(errors, [...path, name], required, undefined);
    }
    for (const name of Object.keys(value)) {
      if (known.has(name)) continue;
      const place = [...path, name];
      for (const error of rules.names === undefined ? [] : collect(rules.names, name, [])) {
        wrong(errors, place, `a name that is ${error.expected}`, name);
      }
      if (rules.more === false) {
        wrong(errors, place, "no such property", value[name], flags.secret, `unknown property '${name}'`);
      } else if (rules.more !== true) rules.more(value[name], place, errors);
      if (errors.length >= MAX_ERRORS) return;
    }
    const size = Object.keys(value).length;
    if (rules.min !== undefined && size < rules.min[0]) wrongSize(errors, path, rules.min[1], size);
    if (rules.max !== undefined && size > rules.max[0]) wrongSize(errors, path, rules.max[1], size);
  };
};

interface ArrayRules {
  readonly min?: readonly [number, string];
  readonly max?: readonly [number, string];
  readonly unique?: boolean;
}
const array = (flags: Flags, items: Check, rules: ArrayRules): Check => (value, path, errors) => {
  if (!Array.isArray(value)) return wrong(errors, path, flags.expected, value, flags.secret);
  for (let index = 0; index < value.length && errors.length < MAX_ERRORS; index++) {
    items(value[index], [...path, index], errors);
  }
  if (rules.min !== undefined && value.length < rules.min[0]) wrongSize(errors, path, rules.min[1], value.length);
  if (rules.max !== undefined && value.length > rules.max[0]) wrongSize(errors, path, rules.max[1], value.length);
  if (rules.unique) {
    const seen = new Set<string>();
    value.forEach((item, index) => {
      const text = canonical(item);
      if (seen.has(text)) wrong(errors, [...path, index], "items that differ", item, flags.secret, "the same item is there twice");
      seen.add(text);
    });
  }
};
const tuple = (flags: Flags, least: number, items: readonly Check[]): Check => (value, path, errors) => {
  if (!Array.isArray(value) || value.length < least || value.length > items.length) {
    return wrong(errors, path, flags.expected, value, flags.secret);
  }
  value.forEach((item, index) => items[index]?.(item, [...path, index], errors));
};
const union = (flags: Flags, types: readonly Check[], tag: string, tags: readonly unknown[]): Check => (value, path, errors) => {
  if (tag !== "" && isObject(value)) {
    const index = tags.findIndex((each) => each !== undefined && has(value, tag) && each === value[tag]);
    if (index >= 0) return types[index]?.(value, path, errors);
  }
  if (types.some((check) => collect(check, value, path).length === 0)) return;
  if (tag !== "" && isObject(value) && tags.every((each) => each !== undefined)) {
    return wrong(errors, [...path, tag], `one of ${tags.map(shown).join(", ")}`, value[tag], flags.secret);
  }
  wrong(errors, path, flags.expected, value, flags.secret);
};
const intersection = (types: readonly Check[]): Check => (value, path, errors) => {
  for (const check of types) check(value, path, errors);
};
/** A named type; it may refer to itself, and is followed so many steps and no further. */
const named = (flags: Flags, check: () => Check, endless: boolean): Check => (value, path, errors) => {
  if (endless && path.length > MAX_NESTING) {
    const expected = `at most ${MAX_NESTING} levels of nesting`;
    return wrong(errors, path, expected, value, flags.secret, `nested more than ${MAX_NESTING} deep`);
  }
  check()(value, path, errors);
};
const anything: Check = () => undefined;
