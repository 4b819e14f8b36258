// Pages with pusher-js that log what they receive (tests/support/recovering.py). Options: key, secret, client (pusher-js's own),
// pages (name of the page → channels). Times are seconds on the monotonic clock of the machine.

import { createHmac } from 'node:crypto';
import Pusher from 'pusher-js';
import { obey, options } from './reports.mjs';

const { client, key, pages, secret } = options;
const log = [];
const now = () => Number(process.hrtime.bigint()) / 1e9;
const hmac = (text) => createHmac('sha256', secret).update(text).digest('hex');

function authorize(page, { socketId, channelName }, callback) {
  const data = channelName.startsWith('presence-') ? JSON.stringify({ user_id: page }) : '';
  const auth = `${key}:${hmac([socketId, channelName, data].filter(Boolean).join(':'))}`;
  callback(null, data ? { auth, channel_data: data } : { auth });
}

function open(page) {
  const pusher = new Pusher(key, {
    cluster: 'none',
    forceTLS: false,
    enabledTransports: ['ws'],
    wsPath: `/resume/${page}`,
    httpPath: `/resume/${page}/pusher`,
    channelAuthorization: { customHandler: (params, callback) => authorize(page, params, callback) },
    ...client,
  });
  let connected = false;
  pusher.connection.bind('state_change', ({ current }) => {
    if (connected && current !== 'connected') log.push([page, now(), 'lost']);
    connected = current === 'connected';
  });
  for (const channel of pages[page]) {
    const subscribed = pusher.subscribe(channel);
    subscribed.bind('pusher:subscription_succeeded', () => log.push([page, now(), 'joined', channel]));
    subscribed.bind('pusher:resumed', (data) => log.push([page, now(), 'resumed', channel, data]));
    subscribed.bind('e', ({ seq }) => log.push([page, now(), 'event', channel, seq]));
  }
  return pusher;
}

const open_pages = Object.fromEntries(Object.keys(pages).map((page) => [page, open(page)]));

obey({
  log: () => log.splice(0),
  trigger({ page, channel, event, data }) {
    open_pages[page].channel(channel).trigger(event, data);
  },
  disconnect({ page }) {
    open_pages[page].disconnect();
  },
  connect({ page }) {
    open_pages[page].connect();
  },
});
