/** What a refused request says: problem details (RFC 9457). */
export interface Problem {
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  /** Stable and dotted; match on it. */
  readonly code: string;
  readonly request_id: string;
  readonly errors?: ReadonlyArray<{ in: string; path: string; expected: string; actual: string; message: string }>;
}

/** An answer that is no success. */
export class GatiError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Problem | undefined,
    readonly body: string,
  ) {
    super(problem ? `${status} ${problem.code}: ${problem.detail}` : `the server answered ${status}`);
    this.name = "GatiError";
  }

  get code(): string {
    return this.problem?.code ?? "";
  }
}

export interface ClientOptions {
  readonly baseUrl: string;
  /** Sent as `Authorization: Bearer …`. */
  readonly token?: string;
  /** Of every call, unless it says otherwise; 30 seconds by default. */
  readonly timeoutMs?: number;
  /** Sent with every call. */
  readonly headers?: Record<string, string>;
  /** Asks for this version of the handlers, by `x-gati-version`. */
  readonly version?: string;
  readonly fetch?: typeof fetch;
}

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
  readonly query?: object;
  readonly headers?: object;
}

class Calls {
  private readonly options: ClientOptions;

  constructor(options: ClientOptions) {
    this.options = options;
  }

  protected async call<T>(
    method: string,
    path: string,
    params: Record<string, unknown>,
    body: unknown,
    options: CallOptions,
  ): Promise<T> {
    let url = path.replace(/\{(\w+)\}/g, (_whole, name: string) => encodeURIComponent(String(params[name])));
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(options.query ?? {})) {
      for (const each of Array.isArray(value) ? value : [value]) {
        if (each !== undefined && each !== null) query.append(name, String(each));
      }
    }
    if (query.toString() !== "") url += `?${query}`;
    const headers: Record<string, string> = { ...this.options.headers };
    if (this.options.token !== undefined) headers["authorization"] = `Bearer ${this.options.token}`;
    if (this.options.version !== undefined) headers["x-gati-version"] = this.options.version;
    for (const [name, value] of Object.entries(options.headers ?? {})) {
      if (value !== undefined && value !== null) headers[name.replace(/_/g, "-")] = String(value);
    }
    if (body !== undefined) headers["content-type"] = "application/json";

    const limit = new AbortController();
    const timer = setTimeout(
      () => limit.abort(new Error(`no answer within ${options.timeoutMs ?? this.options.timeoutMs ?? 30_000} ms`)),
      options.timeoutMs ?? this.options.timeoutMs ?? 30_000,
    );
    const abort = (): void => limit.abort(options.signal?.reason);
    if (options.signal?.aborted) abort();
    options.signal?.addEventListener("abort", abort);
    try {
      const send = this.options.fetch ?? fetch;
      const answer = await send(this.options.baseUrl.replace(/\/$/, "") + url, {
        method,
        headers,
        signal: limit.signal,
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      const text = await answer.text();
      const isJson = (answer.headers.get("content-type") ?? "").includes("json");
      if (!answer.ok) throw new GatiError(answer.status, isJson ? (JSON.parse(text) as Problem) : undefined, text);
      return (text === "" ? undefined : isJson ? JSON.parse(text) : text) as T;
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", abort);
    }
  }
}
