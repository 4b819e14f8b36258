export interface Frame {
  event: string;
  channel: string;
  data: any;
  /** `EPOCH:OFFSET`, if the channel has a history */
  position?: string | null;
  headers?: Record<string, unknown>;
  "#msg-from"?: string;
}

export type Reason = "unknown" | "trimmed" | "state-lost" | "too-large" | "no-history";
export type State = "waiting" | "connecting" | "connected" | "closed";

export interface Rejection {
  /** an HTTP status, or the close code of a WebSocket */
  code: number;
  message: string;
  /** the rejected channel; without it, the whole client is rejected */
  channel?: string;
}

export interface Options {
  channels: Iterable<string>;
  token?: string | (() => string | undefined | Promise<string | undefined>);
  positions?: Record<string, string>;
  credentials?: RequestCredentials;
  WebSocket?: new (url: URL) => any;
  onEvent?(frame: Frame): void;
  onGap?(channel: string, reason: Reason, position?: string): void;
  onResumed?(channel: string, replayed: number, position: string): void;
  onState?(state: State, reason?: string): void;
  onError?(rejection: Rejection): void;
}

export interface Connection {
  readonly state: State;
  readonly positions: Readonly<Record<string, string>>;
  close(): void;
}

export function connect(url: string | URL, options: Options): Connection;

/** the global variable of classic scripts */
export as namespace Push1st;
