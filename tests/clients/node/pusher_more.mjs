// pusher-js with users: signed in and authorised by the `pusher` server SDK, as a backend would. Options: client
// (pusher-js's own), key, secret, userData (whom to sign in; or userText, as a backend without the SDK sends it), member (channel_data of presence channels; without it the
// signed-in user is the member).

import { createHmac } from 'node:crypto';
import PusherServer from 'pusher';
import Pusher from 'pusher-js';
import { obey, options, report } from './reports.mjs';

const { client, key, secret, userData, userText, member } = options;

const backend = new PusherServer({ appId: '1', key, secret });

function signed(socketId) {
  const digest = createHmac('sha256', secret).update(`${socketId}::user::${userText}`).digest('hex');
  return { auth: `${key}:${digest}`, user_data: userText };
}

const pusher = new Pusher(key, {
  cluster: 'none',
  forceTLS: false,
  enabledTransports: ['ws'],
  userAuthentication: {
    customHandler: ({ socketId }, callback) => callback(null, userText ? signed(socketId) : backend.authenticateUser(socketId, userData)),
  },
  channelAuthorization: {
    customHandler: ({ socketId, channelName }, callback) =>
      callback(null, backend.authorizeChannel(socketId, channelName, channelName.startsWith('presence-') ? member : undefined)),
  },
  ...client,
});

pusher.connection.bind('state_change', ({ current }) => report('state', { state: current }));
pusher.connection.bind('error', (error) => report('error', { code: error?.data?.code ?? error?.error?.data?.code }));
// Every message as it came; the library has acted on it by now.
pusher.connection.bind('message', (message) => report('message', message));
for (const name of ['online', 'offline']) {
  pusher.user.watchlist.bind(name, (event) => report(name, { users: event.user_ids }));
}

obey({
  signin({ events = [] }) {
    for (const event of events) pusher.user.bind(event, (data) => report('user_event', { event, data }));
    pusher.signin();
  },
  subscribe({ channel, events = [] }) {
    const subscribed = pusher.subscribe(channel);
    subscribed.bind('pusher:subscription_succeeded', () =>
      report('subscribed', { channel, me: subscribed.members?.me?.id ?? null }),
    );
    subscribed.bind('pusher:cache_miss', (data) => report('cache_miss', { channel, data: data ?? null }));
    subscribed.bind('pusher:subscription_count', (data) => report('count', { channel, ...data, kept: subscribed.subscriptionCount }));
    for (const event of events) subscribed.bind(event, (data) => report('event', { channel, event, data }));
  },
  unsubscribe({ channel }) {
    pusher.unsubscribe(channel);
  },
  user() {
    return pusher.user.user_data;
  },
  connection() {
    return { state: pusher.connection.state, retries: Boolean(pusher.connection.retryTimer) };
  },
});
