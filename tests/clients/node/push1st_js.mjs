// clients/js/push1st.js, as an application uses it. Options: url, channels, positions, token or tokens (the results of the
// function `token`: a text, {error}, or {held} until the command `release`), events (what the callback does with events of these names: 'reopen', 'close', 'throw'),
// late (the WebSocket passes on frames after `close`, like that of the package ws), hurry and haste (how many times faster the client reconnects, and notices silence).

import { connect } from '../../../clients/js/push1st.mjs';
import { obey, options, report } from './reports.mjs';

const { hurry = 1, haste = 1, late, tokens, events = {}, ...rest } = options;

const Late = class extends WebSocket {
  close() {
    super.close();
    queueMicrotask(() => this.onmessage({ data: '{"event":"late","channel":"a","data":null,"#msg-id":1}' }));
  }
};

const start = globalThis.setTimeout;
globalThis.setTimeout = (run, ms, ...values) => {
  if (!new Error().stack.includes('push1st.js')) return start(run, ms, ...values);
  if (run.name !== 'open') return start(run, ms / haste);
  report('delay', { ms });
  return start(run, ms / hurry);
};
process.on('unhandledRejection', (error) => report('raised', { message: error.message }));

let release;
async function token() {
  report('token');
  const next = tokens.length > 1 ? tokens.shift() : tokens[0];
  if (next.error) throw new Error(next.error);
  if (next.held) return new Promise((resolve) => (release = () => resolve(next.held)));
  return next;
}

// The entries of tests/support/recovery.py. `joined` are the channels whose subscription is answered.
const log = [];
const joined = new Set();
const note = (...entry) => log.push(['client', Number(process.hrtime.bigint()) / 1e9, ...entry]);
function answered(channel, data) {
  if (!joined.has(channel)) note('joined', channel);
  joined.add(channel);
  note('resumed', channel, data);
}

let connection;

const actions = {
  reopen() {
    connection.close();
    open({ positions: connection.positions });
  },
  close() {
    connection.close();
  },
  throw() {
    throw new Error('of the callback');
  },
};

function open(more) {
  connection = connect(rest.url, {
    ...rest,
    ...(tokens && { token }),
    ...(late && { WebSocket: Late }),
    onEvent(frame) {
      const { event, channel, data, position } = frame;
      report('event', { event, channel, data, position });
      if (event === 'e') note('event', channel, data?.seq, position);
      actions[events[event]]?.();
    },
    onGap(channel, reason, position) {
      report('gap', { channel, reason, position });
      answered(channel, { recovered: false, reason, position });
    },
    onResumed(channel, replayed, position) {
      report('resumed', { channel, replayed, position });
      answered(channel, { recovered: true, replayed, repeats: false, position });
    },
    onState(state, reason) {
      report('state', { state, reason });
      if (state === 'connected') return;
      joined.clear();
      note('lost');
    },
    onError: (error) => report('error', error),
    ...more,
  });
}

open();

obey({
  close() {
    connection.close();
  },
  release() {
    release();
  },
  log: () => log.splice(0),
  positions: () => connection.positions,
  state: () => connection.state,
});
