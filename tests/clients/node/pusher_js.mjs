// pusher-js, as an application uses it. Options: client (pusher-js's own), key, api, authorize ('server', 'self' or
// 'wrongly'), user (channel_data of presence channels), secret, masterKey (base64, of encrypted channels).

import { createHash, createHmac } from 'node:crypto';
import Pusher from 'pusher-js';
import { obey, options, postJson, report } from './reports.mjs';

const { client, key, api, authorize, user, secret, masterKey } = options;

const hmac = (text) => createHmac('sha256', secret).update(text).digest('hex');

async function token(session, channel, data) {
  switch (authorize) {
    case 'server':
      return postJson(`${api}/apps/app-test/token/session/`, { session, channel, data });
    case 'self':
      return `${key}:${hmac([session, channel, data].filter(Boolean).join(':'))}`;
    case 'wrongly':
      return `${key}:${'0'.repeat(64)}`;
  }
}

async function authData({ socketId, channelName }) {
  const data = channelName.startsWith('presence-') ? JSON.stringify(user) : '';
  const answer = { auth: await token(socketId, channelName, data) };
  if (data) answer.channel_data = data;
  if (channelName.startsWith('private-encrypted-')) {
    const parts = [Buffer.from(channelName), Buffer.from(masterKey, 'base64')];
    answer.shared_secret = createHash('sha256').update(Buffer.concat(parts)).digest('base64');
  }
  return answer;
}

const pusher = new Pusher(key, {
  cluster: 'none',
  forceTLS: false,
  enabledTransports: ['ws'],
  channelAuthorization: {
    customHandler: (params, callback) =>
      authData(params).then(
        (data) => callback(null, data),
        (error) => callback(error, null),
      ),
  },
  ...client,
});

pusher.connection.bind('state_change', ({ current }) =>
  report('state', { state: current, socket_id: pusher.connection.socket_id }),
);
pusher.connection.bind('error', (error) => report('error', { code: error?.data?.code ?? error?.error?.data?.code }));
// Every message as it came; the library has acted on it by now.
pusher.connection.bind('message', (message) => report('message', message));

const people = ({ count, me, members }) => ({ count, me, members });

obey({
  subscribe({ channel, events = [] }) {
    const subscribed = pusher.subscribe(channel);
    subscribed.bind('pusher:subscription_succeeded', (data) =>
      report('subscribed', { channel, ...(subscribed.members ? people(data) : {}) }),
    );
    subscribed.bind('pusher:subscription_error', (error) => report('subscription_error', { channel, error }));
    subscribed.bind('pusher:member_added', (member) => report('member_added', { channel, member }));
    subscribed.bind('pusher:member_removed', (member) => report('member_removed', { channel, member }));
    for (const event of events) {
      subscribed.bind(event, (data, metadata) => report('event', { channel, event, data, metadata }));
    }
  },
  unsubscribe({ channel }) {
    pusher.unsubscribe(channel);
  },
  trigger({ channel, event, data }) {
    pusher.channel(channel).trigger(event, data);
  },
  members({ channel }) {
    return people(pusher.channel(channel).members);
  },
  disconnect() {
    pusher.disconnect();
  },
  connect() {
    pusher.connect();
  },
  connection() {
    return { state: pusher.connection.state, retries: Boolean(pusher.connection.retryTimer) };
  },
});
